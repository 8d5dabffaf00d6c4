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
        const link = linkOf(node, slot)
        if (!link) return null
        if (Number(link.origin_id) === SUBGRAPH_INPUT) {
            const parent = holderOf(root, graph)
            if (!parent) return null
            node = parent
            slot = link.origin_slot
            continue
        }
        let origin = graph.getNodeById(link.origin_id)
        let output = link.origin_slot
        for (let hop = 0; hop < MOST_STEPS && origin && origin.mode !== BYPASSED && origin.type !== "Reroute"; hop++) {
            const behind = origin.subgraph
                ? origin.subgraph.outputNode?.slots?.[output]?.getLinks?.()[0]
                : origin.isVirtualNode && origin.getInputLink?.(output)
            if (!behind) break
            output = behind.origin_slot
            origin = (origin.subgraph ?? origin.graph)?.getNodeById(behind.origin_id)
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

/** The link at an input. @param {any} node @param {number} slot @returns {any} */
function linkOf(node, slot) {
    const id = node.inputs[slot]?.link
    return id == null ? null : (node.graph?.getLink?.(id) ?? node.graph?.links?.[id] ?? null)
}

/**
 * What a run takes for a widget: what stands in it, or, where a subgraph shows it on its own face, what stands there. Undefined where it
 * comes through a wire.
 * @param {any} node @param {string} name @param {any} root @returns {any}
 */
export function valueOf(node, name, root) {
    for (let step = 0; step < MOST_STEPS; step++) {
        const slot = node.inputs?.findIndex((/** @type {any} */ input) => input.name === name) ?? -1
        const link = slot < 0 ? null : linkOf(node, slot)
        if (!link) {
            const own = slot < 0 ? null : node.getWidgetFromSlot?.(node.inputs[slot])
            return (own ?? node.widgets?.find((/** @type {any} */ widget) => widget.name === name))?.value
        }
        const parent = Number(link.origin_id) === SUBGRAPH_INPUT ? holderOf(root, node.graph) : null
        if (!parent) return undefined
        node = parent
        name = parent.inputs?.[link.origin_slot]?.name
    }
    return undefined
}

/** The key under which the frontend keeps what a node put out. @param {any} node @returns {string} */
function locatorOf(node) {
    const graph = node?.graph
    return !graph || graph.isRootGraph !== false ? String(node?.id) : `${graph.id}:${node.id}`
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
    const root = app.rootGraph ?? app.graph
    const origin = originOf(node, "image", root)
    const before = received ?? app.nodeOutputs?.[locatorOf(node)]?.maskprompt_picture?.[0]
    if (!origin && !before) return "Wire a picture to image, and it shows here."
    if (["LoadImage", "LoadImageOutput"].includes(origin?.comfyClass)) {
        const value = valueOf(origin, "image", root)
        if (value !== undefined) return typeof value === "string" && value ? annotated(value) : "Choose a picture in Load Image."
    }
    const shown = before ?? app.nodeOutputs?.[locatorOf(origin)]?.images?.[0]
    if (shown?.filename) return { picture: shown.filename, subfolder: shown.subfolder ?? "", type: shown.type ?? "output" }
    return `Press Run once: the picture from ${origin?.title ?? "the node before"} shows here then.`
}

/** The address of a picture on ComfyUI's server. @param {any} api @param {Source} source @returns {string} */
export function addressOf(api, source) {
    const query = new URLSearchParams({ filename: source.picture, subfolder: source.subfolder, type: source.type })
    // As a JPEG: what was painted in the MaskEditor is a hole in the file, and browsers show no TIFF. A JPEG itself would lose how it is turned.
    if (/\.(png|webp|tiff?)$/i.test(source.picture)) query.set("preview", "jpeg;90")
    return api.apiURL(`/view?${query}`)
}
