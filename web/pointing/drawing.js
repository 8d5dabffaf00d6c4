// @ts-check
/**
 * Marks and a mask drawn over a picture, in its pixels.
 * @typedef {import("./marks.js").Marks} Marks
 * @typedef {import("./marks.js").Point} Point
 */

const ON = "#35d07f"
const OFF = "#ff5a5f"
const TINT = "#4aa3ff"

/**
 * Draw the object in a tint, the rest darkened.
 * @param {CanvasRenderingContext2D} context
 * @param {HTMLImageElement} mask See-through outside of the object.
 * @param {number} width @param {number} height
 */
export function drawMask(context, mask, width, height) {
    const layer = document.createElement("canvas")
    layer.width = mask.naturalWidth
    layer.height = mask.naturalHeight
    const inner = /** @type {CanvasRenderingContext2D} */ (layer.getContext("2d"))
    /** @type {[GlobalCompositeOperation, string, number][]} */
    const passes = [
        ["source-in", TINT, 0.4],
        ["source-out", "#000", 0.5],
    ]
    for (const [operation, colour, strength] of passes) {
        inner.globalCompositeOperation = "copy"
        inner.drawImage(mask, 0, 0)
        inner.globalCompositeOperation = operation
        inner.fillStyle = colour
        inner.fillRect(0, 0, layer.width, layer.height)
        context.globalAlpha = strength
        context.drawImage(layer, 0, 0, width, height)
    }
    context.globalAlpha = 1
}

/**
 * Draw boxes, and points with a plus or a minus.
 * @param {CanvasRenderingContext2D} context @param {Marks} marks
 * @param {number} unit A pixel of the page in pixels of the picture.
 */
export function drawMarks(context, marks, unit) {
    for (const box of marks.boxes) {
        context.lineWidth = 3.5 * unit
        context.strokeStyle = "#000a"
        context.strokeRect(box.x, box.y, box.width, box.height)
        context.lineWidth = 1.5 * unit
        context.strokeStyle = ON
        context.strokeRect(box.x, box.y, box.width, box.height)
    }
    const draw = (/** @type {Point} */ point, /** @type {string} */ colour, /** @type {boolean} */ upright) => {
        const x = point.x + 0.5
        const y = point.y + 0.5
        context.beginPath()
        context.arc(x, y, 5.5 * unit, 0, 2 * Math.PI)
        context.fillStyle = colour
        context.fill()
        context.lineWidth = 1.5 * unit
        context.strokeStyle = "#fff"
        context.stroke()
        context.beginPath()
        context.moveTo(x - 3 * unit, y)
        context.lineTo(x + 3 * unit, y)
        if (upright) {
            context.moveTo(x, y - 3 * unit)
            context.lineTo(x, y + 3 * unit)
        }
        context.stroke()
    }
    for (const point of marks.positive) draw(point, ON, true)
    for (const point of marks.negative) draw(point, OFF, false)
}
