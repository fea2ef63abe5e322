// transformers.js makes the tokens, ONNX Runtime for browsers (WebAssembly) computes in 8 bits.
import { env, pipeline } from "./lib/transformers.min.js"

const here = new URL(".", import.meta.url).href
env.allowLocalModels = true
env.allowRemoteModels = false
env.localModelPath = "./"  // relative: of an absolute address it would ask for no tokenizer
env.useBrowserCache = false
env.backends.onnx.wasm.wasmPaths = here + "lib/"
env.backends.onnx.wasm.numThreads = 1  // more need headers that a plain server does not send

const find = selector => document.querySelector(selector)

function element(tag, text, width) {  // textContent: what a text or a label says is never taken for HTML
  const made = document.createElement(tag)
  made.textContent = text
  if (width !== undefined) made.style.width = width
  return made
}

function bar(label, probability) {
  const row = element("div", "")
  row.className = "bar"
  const percent = (100 * probability).toFixed(1) + "%"
  row.append(element("span", label), element("i", "", percent), element("b", percent))
  return row
}

try {
  const begun = performance.now()
  const classify = await pipeline("text-classification", "model", { subfolder: "", dtype: "q8", device: "wasm" })
  find("[role=status]").textContent = `loaded in ${Math.round(performance.now() - begun)} ms`
  find("button").disabled = false
  find("form").onsubmit = async event => {
    event.preventDefault()
    const begun = performance.now()
    const scores = await classify(find("textarea").value, { top_k: null })
    const milliseconds = performance.now() - begun
    find("section").replaceChildren(...scores.map(({ label, score }) => bar(label, score)))
    find("[role=status]").textContent = `${milliseconds.toFixed(1)} ms`
  }
} catch (error) {
  find("[role=alert]").textContent = error.message
}
