// @ts-check
// @ts-ignore: ComfyUI serves these
import { app } from "../../../scripts/app.js"
import { enlarge } from "./enlarged.js"
import { BOX_MASK, live, Pointing, SAM_MASK } from "./pointing.js"

const NODES = [SAM_MASK, BOX_MASK, "MaskPromptCropAroundBox"]
const HEIGHT = 320
const LEAST_HEIGHT = 48

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
    refreshComboInNodes() {
        for (const pointing of live) pointing.askAgain()
    },
    nodeCreated(/** @type {any} */ node) {
        if (!NODES.includes(node.comfyClass)) return
        const pointing = new Pointing(node)
        if (pointing.points) addPicture(node, pointing)
        else {
            const button = node.addWidget("button", "Draw the box in the picture", null, () => enlarge(pointing), { serialize: false })
            button.serialize = false
        }
        const added = node.onAdded
        node.onAdded = function () {
            pointing.start()
            return added?.apply(this, arguments)
        }
        const removed = node.onRemoved
        node.onRemoved = function () {
            pointing.stop()
            return removed?.apply(this, arguments)
        }
        const executed = node.onExecuted
        node.onExecuted = function (/** @type {any} */ output) {
            pointing.received = output?.maskprompt_picture?.[0] ?? null
            pointing.askAgain()
            pointing.look()
            return executed?.apply(this, arguments)
        }
        if (node.graph) pointing.start()
    },
})
