/** Timing of work: delayed, rate-limited, one after the other. */

/** Wait for `ms`, or until `signal` aborts, or until an event occurs: `[target, type]`. */
export function pause(ms, signal, [target, type] = []) {
  return new Promise((resolve) => {
    const controller = new AbortController();
    const end = () => {
      clearTimeout(timer);
      controller.abort();
      resolve();
    };
    const timer = setTimeout(end, ms);
    signal.addEventListener("abort", end, { signal: controller.signal });
    target?.addEventListener(type, end, { signal: controller.signal });
    if (signal.aborted) end();
  });
}

/** Return a function that runs `work` at once, but at most every `ms`: calls in between are combined into one. */
export function throttle(work, ms, signal) {
  let isRunning = false;
  let isRequested = false;
  return async () => {
    isRequested = true;
    if (isRunning) return;
    isRunning = true;
    try {
      while (isRequested && !signal.aborted) {
        isRequested = false;
        await work();
        await pause(ms, signal);
      }
    } finally {
      isRunning = false;
    }
  };
}

/** Return a function that runs the work passed to it one after the other, also after a failure. */
export function createQueue() {
  let last = Promise.resolve();
  return (work) => (last = last.then(work, work));
}
