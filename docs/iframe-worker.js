/* Browsers give pages that were opened from a folder no workers, and the search of the site is one. Here a hidden frame,
   which runs the same script in the page's own thread, takes its place. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.waiting = []
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.appendChild(frame)
      this.scope = frame.contentWindow
      this.scope.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      this.scope.importScripts = (...names) => Promise.all(names.map(name => this.load(new URL(name, url).href)))
      this.load(url).then(() => {
        const waiting = this.waiting
        this.waiting = null
        waiting.forEach(data => this.postMessage(data))
      })
    }
    load(url) {
      return new Promise((done, failed) => {
        const script = this.scope.document.createElement("script")
        Object.assign(script, { src: url, onload: done, onerror: failed })
        this.scope.document.body.appendChild(script)
      })
    }
    postMessage(data) {
      if (this.waiting) this.waiting.push(data)
      else this.scope.dispatchEvent(new MessageEvent("message", { data }))
    }
    terminate() {
      this.scope.frameElement.remove()
    }
  }
}
