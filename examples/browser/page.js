// transformers.js makes the tokens, ONNX Runtime for browsers (WebAssembly) computes in 8 bits.
import { bar, find, report } from "./bars.js"
import { env, pipeline } from "./lib/transformers.min.js"

const here = new URL(".", import.meta.url).href
env.allowLocalModels = true
env.allowRemoteModels = false
env.localModelPath = "./"  // relative: of an absolute address it would ask for no tokenizer
env.useBrowserCache = false
env.backends.onnx.wasm.wasmPaths = here + "lib/"
env.backends.onnx.wasm.numThreads = 1  // more need headers that a plain server does not send

report(async () => {
  const begun = performance.now()
  const classify = await pipeline("text-classification", "model", { subfolder: "", dtype: "q8", device: "wasm" })
  find("[role=status]").textContent = `loaded in ${Math.round(performance.now() - begun)} ms`
  find("button").disabled = false
  find("form").onsubmit = event => {
    event.preventDefault()
    report(async () => {
      const begun = performance.now()
      const scores = await classify(find("textarea").value, { top_k: null })
      const milliseconds = performance.now() - begun
      find("section").replaceChildren(...scores.map(({ label, score }) => bar(label, score)))
      find("[role=status]").textContent = `${milliseconds.toFixed(1)} ms`
    })
  }
})
