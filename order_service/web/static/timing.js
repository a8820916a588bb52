/** Timing of work: delayed, rate-limited, one after the other. */

/** Wait for `ms`, or until `signal` aborts, or until an event occurs: `[target, type]`. */
export function pause(ms, signal, [target, type] = []) {
  return new Promise((resolve) => {
    const over = new AbortController();
    const end = () => {
      clearTimeout(timer);
      over.abort();
      resolve();
    };
    const timer = setTimeout(end, ms);
    signal.addEventListener("abort", end, { signal: over.signal });
    target?.addEventListener(type, end, { signal: over.signal });
    if (signal.aborted) end();
  });
}

/** Return a function that runs `work` at once, but at most every `ms`: calls in between are combined into one. */
export function seldom(work, ms, signal) {
  let isBusy = false;
  let isWanted = false;
  return async () => {
    isWanted = true;
    if (isBusy) return;
    isBusy = true;
    try {
      while (isWanted && !signal.aborted) {
        isWanted = false;
        await work();
        await pause(ms, signal);
      }
    } finally {
      isBusy = false;
    }
  };
}

/** Return a function that runs the work passed to it one after the other, also after a failure. */
export function oneByOne() {
  let last = Promise.resolve();
  return (work) => (last = last.then(work, work));
}
