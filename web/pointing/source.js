// @ts-check
/**
 * Where the picture comes from that a node will see.
 * `chosen`: by the artist, in a Load Image.
 * @typedef {{picture: string, subfolder: string, type: string, chosen?: boolean}} Source
 */

const SUBGRAPH_INPUT = -10
const BYPASSED = 4
const MOST_STEPS = 50

/**
 * The node behind an input, through reroutes, bypassed nodes, subgraph inputs and nodes that stand in the page alone (Get and Set); null
 * where nothing is wired.
 * @param {any} node @param {string} name @param {any} root The root graph, to find a subgraph's own node in.
 * @returns {any}
 */
export function originOf(node, name, root) {
    let slot = node.inputs?.findIndex((/** @type {any} */ input) => input.name === name) ?? -1
    for (let step = 0; step < MOST_STEPS && slot >= 0; step++) {
        const graph = node.graph
        const id = node.inputs[slot]?.link
        const link = id == null ? null : (graph?.getLink?.(id) ?? graph?.links?.[id])
        if (!link) return null
        if (link.origin_id === SUBGRAPH_INPUT) {
            const parent = holderOf(root, graph)
            if (!parent) return null
            node = parent
            slot = link.origin_slot
            continue
        }
        let origin = graph.getNodeById(link.origin_id)
        for (let hop = 0; hop < MOST_STEPS && origin?.isVirtualNode && origin.type !== "Reroute"; hop++) {
            const behind = origin.getInputLink?.(link.origin_slot)
            if (!behind) break
            origin = origin.graph?.getNodeById(behind.origin_id)
        }
        if (!origin) return null
        const passing = origin.type === "Reroute" || origin.mode === BYPASSED
        if (!passing) return origin
        const type = node.inputs[slot].type
        slot = origin.inputs?.findIndex((/** @type {any} */ input) => origin.type === "Reroute" || input.type === type) ?? -1
        node = origin
    }
    return null
}

/** The node that stands for a subgraph, anywhere below the root. @param {any} root @param {any} graph @returns {any} */
function holderOf(root, graph) {
    for (const node of root?.nodes ?? []) {
        if (!node.subgraph) continue
        if (node.subgraph === graph) return node
        const inner = holderOf(node.subgraph, graph)
        if (inner) return inner
    }
    return null
}

/** Take apart what Load Image's widget says: `folder/name.png [input]`. @param {string} value @returns {Source} */
export function annotated(value) {
    const found = /^(.*?)\s*\[(input|output|temp)\]$/.exec(value)
    const path = found ? found[1] : value
    const cut = path.lastIndexOf("/")
    return { picture: path.slice(cut + 1), subfolder: cut < 0 ? "" : path.slice(0, cut), type: found ? found[2] : "input", chosen: true }
}

/**
 * The picture that `node` gets at `image`: the file that a Load Image names, else what it got in its last run, else the preview that the
 * node before it shows. A text says why there is none.
 * @param {any} app @param {any} node @param {any} received The picture of the node's last run, if any.
 * @returns {Source | string}
 */
export function pictureOf(app, node, received) {
    const origin = originOf(node, "image", app.rootGraph ?? app.graph)
    if (!origin && !received) return "Wire a picture to image, and it shows here."
    const widget = origin?.comfyClass?.startsWith("LoadImage") && origin.widgets?.find((/** @type {any} */ w) => w.name === "image")
    if (widget) return typeof widget.value === "string" && widget.value ? annotated(widget.value) : "Choose a picture in Load Image."
    const shown = received ?? app.nodeOutputs?.[origin?.id]?.images?.[0]
    if (shown?.filename) return { picture: shown.filename, subfolder: shown.subfolder ?? "", type: shown.type ?? "output" }
    return `Press Run once: the picture from ${origin?.title ?? "the node before"} shows here then.`
}

/** The address of a picture on ComfyUI's server. @param {any} api @param {Source} source @returns {string} */
export function addressOf(api, source) {
    const query = new URLSearchParams({ filename: source.picture, subfolder: source.subfolder, type: source.type })
    // What was painted in the MaskEditor is a hole in the file. A JPEG has none, and would lose how it is turned.
    if (/\.(png|webp)$/i.test(source.picture)) query.set("channel", "rgb")
    return api.apiURL(`/view?${query}`)
}
