// Two changes to the worker in which the theme searches:
// - A browser does not start a worker for a page that is opened from a folder (file://): its script runs in a hidden frame.
// - A search finds the pages of the reader's language only.
{
  class IFrameWorker extends EventTarget {
    constructor(address) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc = "<!doctype html><body>";
      this.ready = new Promise((done) => (frame.onload = done)).then(() => {
        this.inside = frame.contentWindow;
        this.inside.importScripts = (...scripts) =>
          scripts.reduce((before, script) => before.then(() => this.load(script)), Promise.resolve());
        this.inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
        return this.load(address);
      });
      document.body.append(frame);
    }

    load(address) {
      const script = this.inside.document.createElement("script");
      script.src = address;
      return new Promise((done, failed) => {
        script.onload = done;
        script.onerror = () => failed(new Error(`${address} was not loaded`));
        this.inside.document.body.append(script);
      });
    }

    postMessage(data) {
      this.ready.then(() => this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data })));
    }
  }

  const fromFolder = location.protocol === "file:";
  const chinese = document.documentElement.lang === "zh";
  if (fromFolder) window.IFrameWorker = IFrameWorker; // the name by which the theme's script knows that it is in a frame
  window.Worker = class extends (fromFolder ? IFrameWorker : Worker) {
    postMessage(message) {
      const docs = message.data?.docs?.filter((page) => page.location.startsWith("zh/") === chinese);
      super.postMessage(docs ? { ...message, data: { ...message.data, docs } } : message);
    }
  };
}
