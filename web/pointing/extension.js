// @ts-check
// @ts-ignore: ComfyUI serves these
import { app } from "../../../scripts/app.js"
// @ts-ignore
import { api } from "../../../scripts/api.js"
import { boxesText, noMarks, parseBoxes, parsePoints, pointsText, same } from "./marks.js"
import { addressOf, originOf, pictureOf } from "./source.js"
import { PictureView } from "./view.js"

/** @typedef {import("./marks.js").Marks} Marks */

const SAM_MASK = "MaskPromptSAMMask"
const NODES = [SAM_MASK, "MaskPromptBoxMask", "MaskPromptCropAroundBox"]
const SIDES = /** @type {const} */ (["x", "y", "width", "height"])
const MARKS = ["positive_coords", "negative_coords", "box", ...SIDES]
const LOOK_EVERY = 300
const ASK_AGAIN = 1000
const MOST_UNDO = 100
const HEIGHT = 320
const LEAST_HEIGHT = 48
const ROUTE = "/maskprompt/point"
/** Where the MaskEditor puts the same photograph with what was painted on it. */
const PAINTED_ON = "clipspace"

/** The marks of one node: what its widgets say, the picture it gets, the mask, and the views that show them. */
class Pointing {
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
        this.timer = setInterval(() => this.look(), LOOK_EVERY)
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

    /** The first of the inputs for marks that comes through a wire, where what stands in the widget does not count; "" for none. */
    wired() {
        const found = this.node.inputs?.find((/** @type {any} */ input) => MARKS.includes(input.name) && input.link != null)
        return found?.name ?? ""
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
            if (this.seen === address) this.say("The picture cannot be shown. Choose it again, or press Run once.")
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
        const loader = originOf(this.node, "sam", app.rootGraph ?? app.graph)
        const sam = loader?.widgets?.find((/** @type {any} */ widget) => widget.name === "sam_name")?.value
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
        const settings = { choice: this.value("choice"), min_score: this.value("min_score"), clean: this.value("clean") }
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
        this.say(`Found ${(100 * answer.part).toFixed(1)} % of the picture, score ${answer.score.toFixed(2)}`)
    }
}

/** Show a node's picture over the whole page. @param {Pointing} pointing */
function enlarge(pointing) {
    const dialog = document.createElement("dialog")
    dialog.className = "maskprompt-dialog"
    dialog.style.cssText =
        "width:90vw;height:90vh;max-width:none;max-height:none;padding:10px;border:1px solid #444;border-radius:8px;background:#202020;" +
        "box-sizing:border-box;overflow:hidden"
    const view = pointing.view(undefined)
    view.element.lastElementChild?.append(view.button("Done", "Back to the graph", () => dialog.close()))
    dialog.append(view.element)
    dialog.addEventListener("keydown", (event) => event.stopPropagation())
    dialog.addEventListener("close", () => {
        pointing.close(view)
        dialog.remove()
    })
    document.body.append(dialog)
    dialog.showModal()
    pointing.look()
}

/** @param {any} node @param {Pointing} pointing */
function addPicture(node, pointing) {
    const view = pointing.view(() => enlarge(pointing))
    const widget = node.addDOMWidget("maskprompt_picture", "maskprompt_picture", view.element, {
        serialize: false,
        hideOnZoom: false,
        getMinHeight: () => LEAST_HEIGHT,
        getValue: () => "",
        setValue: () => {},
    })
    widget.serialize = false
    widget.computeLayoutSize = () => ({ minHeight: LEAST_HEIGHT, minWidth: 120 })
    const size = node.computeSize()
    node.setSize([Math.max(node.size[0], 360), Math.max(size[1], node.size[1]) + HEIGHT - LEAST_HEIGHT])
}

app.registerExtension({
    name: "maskprompt.pointing",
    nodeCreated(/** @type {any} */ node) {
        if (!NODES.includes(node.comfyClass)) return
        const pointing = new Pointing(node)
        if (pointing.points) addPicture(node, pointing)
        else {
            const button = node.addWidget("button", "Draw the box in the picture", null, () => enlarge(pointing), { serialize: false })
            button.serialize = false
        }
        const removed = node.onRemoved
        node.onRemoved = function () {
            pointing.stop()
            return removed?.apply(this, arguments)
        }
        const executed = node.onExecuted
        node.onExecuted = function (/** @type {any} */ output) {
            pointing.received = output?.maskprompt_picture?.[0] ?? null
            pointing.look()
            return executed?.apply(this, arguments)
        }
    },
})
