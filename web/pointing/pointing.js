// @ts-check
// @ts-ignore: ComfyUI serves these
import { app } from "../../../scripts/app.js"
// @ts-ignore
import { api } from "../../../scripts/api.js"
import { boxesText, noMarks, parseBoxes, parsePoints, pointsText, same } from "./marks.js"
import { addressOf, originOf, pictureOf, valueOf } from "./source.js"
import { PictureView } from "./view.js"

/** @typedef {import("./marks.js").Marks} Marks */

export const SAM_MASK = "MaskPromptSAMMask"
export const BOX_MASK = "MaskPromptBoxMask"
const SIDES = /** @type {const} */ (["x", "y", "width", "height"])
const MARKS = ["positive_coords", "negative_coords", "box", ...SIDES]
const LOOK_EVERY = 300
const ASK_AGAIN = 1000
const SHOW_AGAIN = 5000
const MOST_UNDO = 100
const ROUTE = "/maskprompt/point"
/** Where the MaskEditor puts the same photograph with what was painted on it. */
const PAINTED_ON = "clipspace"
/** Those in a graph. @type {Set<Pointing>} */ export const live = new Set()

/** The marks of one node: what its widgets say, the picture it gets, the mask, and the views that show them. */
export class Pointing {
    /** @param {any} node */
    constructor(node) {
        this.node = node
        this.points = node.comfyClass === SAM_MASK
        /** @type {Set<PictureView>} */ this.views = new Set()
        /** @type {Marks[]} */ this.past = []
        this.marks = noMarks()
        this.seen = ""
        this.asked = ""
        this.asking = false
        this.words = ""
        /** @type {HTMLImageElement | null} */ this.picture = null
        /** @type {HTMLImageElement | null} */ this.mask = null
        /** @type {any} */ this.received = null
        this.photograph = ""
        this.timer = 0
        /** @type {HTMLDialogElement | null} */ this.dialog = null
    }

    /** Begin when the node is in a graph: copies that are made for the clipboard never are. */
    start() {
        if (this.timer) return
        this.timer = setInterval(() => this.look(), LOOK_EVERY)
        for (const view of this.views) view.start()
        live.add(this)
    }

    /** Forget what could not be had: it may be there now. */
    askAgain() {
        if (!this.mask) this.asked = ""
        if (!this.picture) this.seen = ""
    }

    /** @param {(() => void) | undefined} enlarge @returns {PictureView} */
    view(enlarge) {
        const view = new PictureView({ points: this.points, changed: (marks) => this.change(marks), undo: () => this.undo(), enlarge })
        this.views.add(view)
        view.setPicture(this.picture)
        view.setMarks(this.marks)
        view.setMask(this.mask)
        view.say(this.words)
        return view
    }

    /** @param {PictureView} view */
    close(view) {
        this.views.delete(view)
        view.remove()
    }

    /** End with the node. The frontend owns the frame around the picture, so the picture stays there for a node of the same id to replace. */
    stop() {
        clearInterval(this.timer)
        this.timer = 0
        live.delete(this)
        this.dialog?.close()
        for (const view of this.views) view.leave(this.node.id)
        this.views.clear()
    }

    /** @param {string} name @returns {any} */
    widget(name) {
        return this.node.widgets?.find((/** @type {any} */ widget) => widget.name === name)
    }

    /** @param {string} name @returns {any} */
    value(name) {
        return this.widget(name)?.value
    }

    /** What a run takes for a widget that no mark stands in. @param {string} name @returns {any} */
    taken(name) {
        return valueOf(this.node, name, app.rootGraph ?? app.graph)
    }

    /** The first of the inputs for marks that comes through a wire, where what stands in the widget does not count; "" for none. */
    wired() {
        const names = this.node.comfyClass === BOX_MASK ? [...MARKS, "bboxes"] : MARKS
        return this.linked(names)[0] ?? ""
    }

    /** Those of these inputs that are wired. @param {string[]} names @returns {string[]} */
    linked(names) {
        return (this.node.inputs ?? [])
            .filter((/** @type {any} */ input) => names.includes(input.name) && input.link != null)
            .map((/** @type {any} */ input) => input.name)
    }

    /** What the widgets say. @returns {Marks} */
    read() {
        if (this.widget("box")) {
            const boxes = parseBoxes(String(this.value("box") ?? ""))
            if (!this.points) return { ...noMarks(), boxes }
            const positive = parsePoints(String(this.value("positive_coords") ?? ""))
            return { positive, negative: parsePoints(String(this.value("negative_coords") ?? "")), boxes }
        }
        const [x, y, width, height] = SIDES.map((side) => Number(this.value(side)))
        return { ...noMarks(), boxes: width > 0 && height > 0 ? [{ x, y, width, height }] : [] }
    }

    /** Write marks into the widgets. @param {Marks} marks */
    write(marks) {
        if (this.points) {
            this.set("positive_coords", pointsText(marks.positive))
            this.set("negative_coords", pointsText(marks.negative))
        }
        if (this.widget("box")) this.set("box", boxesText(marks.boxes))
        else if (marks.boxes.length) for (const side of SIDES) this.set(side, marks.boxes[0][side])
    }

    /** @param {string} name @param {string | number} value */
    set(name, value) {
        const widget = this.widget(name)
        if (!widget || widget.value === value) return
        widget.value = value
        widget.callback?.(value, app.canvas, this.node)
    }

    /** @param {Marks} marks */
    change(marks) {
        if (same(marks, this.marks) || this.wired() || !(marks.boxes.length || this.points || this.widget("box"))) return
        this.past.push(this.marks)
        if (this.past.length > MOST_UNDO) this.past.shift()
        this.put(marks)
    }

    undo() {
        const before = this.past.pop()
        if (before) this.put(before)
    }

    /** @param {Marks} marks */
    put(marks) {
        const graph = this.node.graph
        graph?.beforeChange?.()
        this.write(marks)
        graph?.afterChange?.()
        this.node.setDirtyCanvas?.(true, true)
        this.look()
    }

    /** Notice what changed: picture, marks, model. Called now and then, and after every mark. */
    look() {
        const graph = this.node.graph
        const root = app.rootGraph ?? app.graph
        if (graph && root?.subgraphs?.get && graph !== root && root.subgraphs.get(graph.id) !== graph) return this.stop()
        if (!this.views.size) return
        for (const view of this.views) view.settle(this.node.id)
        const marks = this.read()
        if (!same(marks, this.marks)) {
            this.marks = marks
            for (const view of this.views) view.setMarks(marks)
        }
        const source = pictureOf(app, this.node, this.received)
        const key = typeof source === "string" ? "" : addressOf(api, source)
        if (typeof source !== "string" && source.chosen) this.turnTo(source.subfolder === PAINTED_ON ? this.photograph || PAINTED_ON : key)
        if (key !== this.seen) {
            this.seen = key
            this.asked = ""
            this.show(null)
            if (key) this.fetch(key)
        }
        if (typeof source === "string") this.say(source)
        else if (this.wired()) this.say(`${this.wired()} comes through a wire: that counts, and marks in the picture do not.`)
        else if (this.picture && this.points) this.ask(source)
        else if (this.picture) this.say(marks.boxes.length ? `Box ${boxesText(marks.boxes)}` : "Drag a box over the picture.")
    }

    /** Take the clicks away when another photograph is loaded: they were on the one before. Undo brings them back. @param {string} key */
    turnTo(key) {
        const another = this.photograph !== "" && this.photograph !== key
        this.photograph = key
        if (another && this.points) this.change(noMarks())
    }

    /** @param {string} address */
    fetch(address) {
        const picture = new Image()
        picture.onload = () => {
            if (this.seen === address) this.show(picture)
            this.look()
        }
        picture.onerror = () => {
            if (this.seen !== address) return
            this.say("The picture cannot be shown. Choose it again, or press Run once.")
            setTimeout(() => this.seen === address && this.askAgain(), SHOW_AGAIN)
        }
        picture.src = address
    }

    /** @param {HTMLImageElement | null} picture */
    show(picture) {
        this.picture = picture
        this.mask = null
        for (const view of this.views) view.setPicture(picture)
    }

    /** @param {HTMLImageElement | null} mask */
    lay(mask) {
        this.mask = mask
        for (const view of this.views) view.setMask(mask)
    }

    /** @param {string} words */
    say(words) {
        this.words = words
        for (const view of this.views) view.say(words)
    }

    /** Ask the server for the mask of these marks, one question at a time and only where something changed. @param {any} source */
    async ask(source) {
        const root = app.rootGraph ?? app.graph
        const loader = originOf(this.node, "sam", root)
        const sam = loader && valueOf(loader, "sam_name", root)
        if (!this.marks.positive.length && !this.marks.boxes.length) {
            this.asked = ""
            if (this.mask) this.lay(null)
            this.say("Click on the object; right click on what is not; drag for a box; wheel zooms.")
            return
        }
        if (typeof sam !== "string") {
            this.say("Wire a Load SAM Model to sam, and the mask shows here.")
            return
        }
        const texts = { positive: pointsText(this.marks.positive), negative: pointsText(this.marks.negative), box: boxesText(this.marks.boxes) }
        const settings = { choice: this.taken("choice"), min_score: this.taken("min_score"), clean: this.taken("clean") }
        const question = JSON.stringify({ ...source, ...texts, ...settings, sam })
        if (this.asking || question === this.asked) return
        this.asked = question
        this.asking = true
        this.say("Looking ...")
        let again = 0
        try {
            const headers = { "Content-Type": "application/json" }
            const response = await api.fetchApi(ROUTE, { method: "POST", headers, body: question })
            const answer = await response.json()
            if (this.asked !== question) again = 1
            else if (response.ok) await this.take(answer)
            else {
                this.lay(null)
                this.say(answer.error ?? `The server says ${response.status}.`)
                if (response.status === 503) again = ASK_AGAIN
            }
        } catch {
            this.say("The server does not answer.")
            again = ASK_AGAIN
        }
        this.asking = false
        if (again > 1) setTimeout(() => (this.asked = ""), again)
        this.look()
    }

    /** @param {{mask: string | null, score: number, part: number}} answer */
    async take(answer) {
        if (!answer.mask) {
            this.lay(null)
            this.say("Nothing found here. Click on the middle of the object, or drag a box around it.")
            return
        }
        const mask = new Image()
        mask.src = answer.mask
        await mask.decode()
        this.lay(mask)
        const more = this.linked(["bboxes", "rough_mask"]).join(" and ")
        const found = `Found ${(100 * answer.part).toFixed(1)} % of the picture, score ${answer.score.toFixed(2)}`
        this.say(more ? `${found}; a run adds ${more}` : found)
    }
}
