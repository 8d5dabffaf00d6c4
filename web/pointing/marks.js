// @ts-check
/**
 * Marks on a picture, in its pixels, and the texts in a node's widgets that say the same.
 * @typedef {{x: number, y: number}} Point
 * @typedef {{x: number, y: number, width: number, height: number}} Box
 * @typedef {{positive: Point[], negative: Point[], boxes: Box[]}} Marks
 */

const NUMBER = /^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i

/** No marks at all. @returns {Marks} */
export function noMarks() {
    return { positive: [], negative: [], boxes: [] }
}

/**
 * Read `1,2; 3,4` or core's JSON into objects with these keys, full-width digits and commas as the others. A part that says nothing of
 * the kind is left out: the node refuses it in words when it runs.
 * @param {string} text
 * @param {string[]} keys
 * @returns {any[]}
 */
export function parse(text, keys) {
    const trimmed = text.normalize("NFKC").trim()
    if (trimmed.startsWith("[") || trimmed.startsWith("{")) {
        try {
            const read = JSON.parse(trimmed)
            const entries = Array.isArray(read) ? read : [read]
            return entries.filter((entry) => entry && keys.every((key) => Number.isFinite(entry[key])))
        } catch {
            return []
        }
    }
    const entries = []
    for (const part of trimmed.split(/[;\n]/)) {
        const words = part.trim().replace(/^\((.*)\)$/, "$1").trim().split(/\s*,\s*|\s+/)
        if (words.length === keys.length && words.every((word) => NUMBER.test(word)))
            entries.push(Object.fromEntries(keys.map((key, index) => [key, Number(words[index])])))
    }
    return entries
}

/** @param {Point[]} points @returns {string} */
export function pointsText(points) {
    return points.map((point) => `${point.x},${point.y}`).join("; ")
}

/** @param {Box[]} boxes @returns {string} */
export function boxesText(boxes) {
    return boxes.map((box) => `${box.x},${box.y},${box.width},${box.height}`).join("; ")
}

/** Read the points of a widget's text. @param {string} text @returns {Point[]} */
export function parsePoints(text) {
    return parse(text, ["x", "y"])
}

/** Read the boxes of a widget's text. @param {string} text @returns {Box[]} */
export function parseBoxes(text) {
    return parse(text, ["x", "y", "width", "height"])
}

/**
 * The box between two corners, in whole pixels inside a picture of this size; null where it has no area.
 * @param {Point} one @param {Point} other @param {number} width @param {number} height
 * @returns {Box | null}
 */
export function boxBetween(one, other, width, height) {
    const left = Math.max(0, Math.round(Math.min(one.x, other.x)))
    const top = Math.max(0, Math.round(Math.min(one.y, other.y)))
    const right = Math.min(width, Math.round(Math.max(one.x, other.x)))
    const bottom = Math.min(height, Math.round(Math.max(one.y, other.y)))
    return right > left && bottom > top ? { x: left, y: top, width: right - left, height: bottom - top } : null
}

/** Whether both say the same. @param {Marks} one @param {Marks} other @returns {boolean} */
export function same(one, other) {
    return JSON.stringify(one) === JSON.stringify(other)
}
