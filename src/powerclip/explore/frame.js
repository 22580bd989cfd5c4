// The page around this frame makes it as high as what it shows.
new ResizeObserver(() => parent.postMessage({height: document.documentElement.offsetHeight}, "*")).observe(document.body);
