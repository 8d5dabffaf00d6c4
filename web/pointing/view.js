// @ts-check
import { drawMarks, drawMask } from "./drawing.js"
import { boxBetween, noMarks } from "./marks.js"

/**
 * A picture to click on.
 * @typedef {import("./marks.js").Marks} Marks
 * @typedef {import("./marks.js").Point} Point
 */

const DRAG = 4
const NEAR = 8
const MOST_ZOOM = 32

export class PictureView {
    /**
     * @param {{points: boolean, changed: (marks: Marks) => void, undo: () => void, enlarge?: () => void}} options
     * points: whether clicks set points; without, only a box can be dragged.
     */
    constructor(options) {
        this.options = options
        this.marks = noMarks()
        /** @type {HTMLImageElement | null} */ this.picture = null
        /** @type {HTMLImageElement | null} */ this.mask = null
        this.shown = { scale: 1, x: 0, y: 0, fitted: true }
        /** @type {{from: Point, at: Point, moved: boolean, off: boolean, pan: boolean} | null} */ this.drag = null
        this.element = document.createElement("div")
        this.element.className = "maskprompt-picture"
        this.element.style.cssText =
            "display:flex;flex-direction:column;gap:4px;width:100%;height:100%;min-height:0;box-sizing:border-box;" +
            "font:12px sans-serif;color:#ddd;overflow:hidden"
        this.canvas = document.createElement("canvas")
        this.canvas.style.cssText =
            "flex:1 1 0;min-height:0;width:100%;background:#181818;border-radius:4px;cursor:crosshair;touch-action:none;display:block"
        this.words = document.createElement("div")
        this.words.setAttribute("role", "status")
        this.words.style.cssText = "flex:1;min-width:0;overflow:hidden;text-overflow:ellipsis;white-space:nowrap;line-height:22px"
        const bar = document.createElement("div")
        bar.style.cssText = "display:flex;gap:4px;align-items:center;flex:none;height:22px"
        bar.append(this.words, this.button("Undo", "Take back the last mark", () => options.undo()))
        bar.append(this.button("Clear", "Take all marks away", () => options.changed(noMarks())))
        bar.append(this.button("Fit", "Show the whole picture", () => this.fit()))
        if (options.enlarge) bar.append(this.button("Enlarge", "Show the picture large", options.enlarge))
        this.element.append(this.canvas, bar)
        this.listen()
        this.observer = new ResizeObserver(() => this.draw())
    }

    /** Notice the wheel and the size from now on. */
    start() {
        this.observer.observe(this.canvas)
        // Nodes 2.0 takes the wheel for the graph before any element below sees it; the window is asked before Nodes 2.0.
        window.addEventListener("wheel", this.zoom, { capture: true, passive: false })
        return this
    }

    /** @param {string} label @param {string} title @param {() => void} action */
    button(label, title, action) {
        const button = document.createElement("button")
        button.type = "button"
        button.textContent = label
        button.title = title
        button.style.cssText = "flex:none;padding:1px 7px;border:0;border-radius:4px;background:#3a3a3a;color:#ddd;cursor:pointer;font:inherit"
        button.addEventListener("click", action)
        button.addEventListener("pointerdown", (event) => event.stopPropagation())
        return button
    }

    /** Say something below the picture. @param {string} words */
    say(words) {
        if (this.words.textContent !== words) this.words.textContent = words
        this.words.title = words
    }

    /** Show another picture, or none. @param {HTMLImageElement | null} picture */
    setPicture(picture) {
        this.picture = picture
        this.mask = null
        this.fit()
    }

    /** @param {Marks} marks */
    setMarks(marks) {
        this.marks = marks
        this.draw()
    }

    /** Lay a mask over the picture: see-through outside of the object. @param {HTMLImageElement | null} mask */
    setMask(mask) {
        this.mask = mask
        this.draw()
    }

    fit() {
        this.shown.fitted = true
        this.draw()
    }

    /** Notice nothing more. */
    stop() {
        this.observer.disconnect()
        window.removeEventListener("wheel", this.zoom, { capture: true })
    }

    remove() {
        this.stop()
        this.element.remove()
    }

    /** Stop, but stay in the page as what a removed node left. @param {number | string} id The node's. */
    leave(id) {
        this.stop()
        this.say("")
        this.element.dataset.left = String(id)
    }

    /**
     * Take the place of the picture that a removed node of the same id left. When a workflow is loaded again or an edit undone, Nodes 2.0
     * keeps the frames of the nodes whose ids come again, and does not put the new nodes' elements into them.
     * @param {number | string} id The node's.
     */
    settle(id) {
        if (this.element.isConnected) return
        document.querySelector(`.maskprompt-picture[data-left="${CSS.escape(String(id))}"]`)?.replaceWith(this.element)
    }

    listen() {
        const canvas = this.canvas
        canvas.addEventListener("contextmenu", (event) => {
            event.preventDefault()
            event.stopPropagation()
        })
        canvas.addEventListener("pointerdown", (event) => {
            event.stopPropagation()
            if (!this.picture) return
            event.preventDefault()
            if (!event.isPrimary) {
                this.drag = null // a second finger: neither a click nor a box
                this.draw()
                return
            }
            canvas.setPointerCapture(event.pointerId)
            const at = this.point(event)
            const pan = event.button === 1 || (event.button === 0 && event.shiftKey)
            this.drag = { from: at, at, moved: false, off: event.button === 2 || event.altKey, pan }
            this.start = { x: event.clientX, y: event.clientY, shownX: this.shown.x, shownY: this.shown.y }
        })
        canvas.addEventListener("pointermove", (event) => {
            if (!this.drag || !this.start || !event.isPrimary) return
            event.stopPropagation()
            const moved = Math.hypot(event.clientX - this.start.x, event.clientY - this.start.y)
            if (moved > DRAG) this.drag.moved = true
            this.drag.at = this.point(event)
            if (this.drag.pan) {
                const ratio = this.ratio()
                this.shown.fitted = false
                this.shown.x = this.start.shownX + (event.clientX - this.start.x) * ratio
                this.shown.y = this.start.shownY + (event.clientY - this.start.y) * ratio
            }
            this.draw()
        })
        canvas.addEventListener("pointerup", (event) => {
            event.stopPropagation()
            if (!event.isPrimary) return
            const drag = this.drag
            this.drag = null
            if (drag && this.picture && !drag.pan) this.mark(drag)
            this.draw()
        })
        canvas.addEventListener("pointercancel", () => {
            this.drag = null
            this.draw()
        })
    }

    /** Zoom about the pixel below the pointer. @param {WheelEvent} event */
    zoom = (event) => {
        if (event.target !== this.canvas || !this.picture) return
        event.preventDefault()
        event.stopPropagation()
        const at = this.at(event)
        const least = this.fitting()
        const scale = Math.min(least * MOST_ZOOM, Math.max(least, this.shown.scale * Math.exp(-event.deltaY / 400)))
        this.shown.x = at.x - ((at.x - this.shown.x) * scale) / this.shown.scale
        this.shown.y = at.y - ((at.y - this.shown.y) * scale) / this.shown.scale
        this.shown.scale = scale
        this.shown.fitted = scale <= least * 1.001
        this.draw()
    }

    /** Turn a finished click or drag into a mark. @param {{from: Point, at: Point, moved: boolean, off: boolean}} drag */
    mark(drag) {
        const picture = /** @type {HTMLImageElement} */ (this.picture)
        const width = picture.naturalWidth
        const height = picture.naturalHeight
        const marks = structuredClone(this.marks)
        if (drag.moved || !this.options.points) {
            const box = drag.off ? null : boxBetween(drag.from, drag.at, width, height)
            if (!box || !drag.moved) return
            marks.boxes = [box]
            this.options.changed(marks)
            return
        }
        if (drag.from.x < 0 || drag.from.y < 0 || drag.from.x >= width || drag.from.y >= height) return
        const reach = (NEAR * this.ratio()) / this.shown.scale
        for (const list of [marks.positive, marks.negative]) {
            const hit = list.findIndex((point) => Math.hypot(point.x + 0.5 - drag.from.x, point.y + 0.5 - drag.from.y) < reach)
            if (hit >= 0) {
                list.splice(hit, 1)
                this.options.changed(marks)
                return
            }
        }
        const point = { x: Math.floor(drag.from.x), y: Math.floor(drag.from.y) }
        if (drag.off) marks.negative.push(point)
        else marks.positive.push(point)
        this.options.changed(marks)
    }

    /** Canvas pixels for each pixel of the page: the graph's zoom counts too. @returns {number} */
    ratio() {
        const width = this.canvas.getBoundingClientRect().width
        return width > 0 ? this.canvas.width / width : 1
    }

    /** Where on the canvas, in its pixels, an event is. @param {MouseEvent} event @returns {Point} */
    at(event) {
        const frame = this.canvas.getBoundingClientRect()
        const ratio = this.ratio()
        return { x: (event.clientX - frame.left) * ratio, y: (event.clientY - frame.top) * ratio }
    }

    /** Where in the picture, in its pixels, an event is. @param {MouseEvent} event @returns {Point} */
    point(event) {
        const at = this.at(event)
        return { x: (at.x - this.shown.x) / this.shown.scale, y: (at.y - this.shown.y) / this.shown.scale }
    }

    /** The scale at which the whole picture is seen. @returns {number} */
    fitting() {
        if (!this.picture) return 1
        return Math.min(this.canvas.width / this.picture.naturalWidth, this.canvas.height / this.picture.naturalHeight)
    }

    draw() {
        const canvas = this.canvas
        const density = Math.min(3, Math.max(1, window.devicePixelRatio || 1)) * 1.5
        const width = Math.max(1, Math.round(canvas.clientWidth * density))
        const height = Math.max(1, Math.round(canvas.clientHeight * density))
        if (canvas.width !== width || canvas.height !== height) {
            canvas.width = width
            canvas.height = height
        }
        const context = canvas.getContext("2d")
        if (!context) return
        context.setTransform(1, 0, 0, 1, 0, 0)
        context.clearRect(0, 0, width, height)
        const picture = this.picture
        if (!picture) return
        const shown = this.shown
        if (shown.fitted) {
            shown.scale = this.fitting()
            shown.x = (width - picture.naturalWidth * shown.scale) / 2
            shown.y = (height - picture.naturalHeight * shown.scale) / 2
        }
        context.setTransform(shown.scale, 0, 0, shown.scale, shown.x, shown.y)
        context.imageSmoothingEnabled = shown.scale < 4
        context.drawImage(picture, 0, 0)
        if (this.mask) drawMask(context, this.mask, picture.naturalWidth, picture.naturalHeight)
        drawMarks(context, { ...this.marks, boxes: this.boxes(picture) }, density / shown.scale)
    }

    /** The boxes to draw: the one that is being dragged instead of those there are. @param {HTMLImageElement} picture */
    boxes(picture) {
        const drag = this.drag
        const growing = drag?.moved && !drag.off && !drag.pan && boxBetween(drag.from, drag.at, picture.naturalWidth, picture.naturalHeight)
        return growing ? [growing] : this.marks.boxes
    }
}
