// @ts-check
/** @typedef {import("./pointing.js").Pointing} Pointing */

/** Show a node's picture over the whole page. @param {Pointing} pointing */
export function enlarge(pointing) {
    const dialog = document.createElement("dialog")
    dialog.className = "maskprompt-dialog"
    dialog.style.cssText =
        "width:90vw;height:90vh;max-width:none;max-height:none;padding:10px;border:1px solid #444;border-radius:8px;background:#202020;" +
        "box-sizing:border-box;overflow:hidden"
    const view = pointing.view(undefined).start()
    view.element.lastElementChild?.append(view.button("Done", "Back to the graph", () => dialog.close()))
    // ComfyUI undoes the graph below on Ctrl+Z, and leaves the keys alone where a text field has them.
    const keys = document.createElement("input")
    keys.readOnly = true
    keys.setAttribute("aria-hidden", "true")
    keys.style.cssText = "position:absolute;opacity:0;width:1px;height:1px;pointer-events:none"
    dialog.append(view.element, keys)
    dialog.addEventListener("keydown", (event) => {
        event.stopPropagation()
        if (event.key === "Control" || event.key === "Meta") keys.focus()
        if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") {
            event.preventDefault()
            pointing.undo()
        }
    })
    dialog.addEventListener("click", () => keys.focus())
    dialog.addEventListener("close", () => {
        pointing.dialog = null
        pointing.close(view)
        dialog.remove()
    })
    document.body.append(dialog)
    pointing.dialog = dialog
    dialog.showModal()
    keys.focus()
    pointing.look()
}
