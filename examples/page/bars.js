// What the pages of serve.py and in_browser.py share.

export const find = selector => document.querySelector(selector)

export function element(tag, text) {  // textContent: what a text or a label says is never taken for HTML
  const made = document.createElement(tag)
  made.textContent = text
  return made
}

export function bar(label, probability) {
  const row = element("div", "")
  row.className = "bar"
  const percent = (100 * probability).toFixed(1) + "%"
  row.append(element("span", label), element("i", ""), element("b", percent))
  row.children[1].style.width = percent
  return row
}

export async function report(work) {  // what goes wrong is shown on the page
  find("[role=alert]").textContent = ""
  try { await work() } catch (error) { find("[role=alert]").textContent = error.message }
}
