/** When things are done: later, seldom, one after the other. */

/** Wait so long, or until `signal` aborts, or until an event comes: `[target, type]`. */
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

/** Make a function that does `work` at once, then not again for `ms`: what is asked for meanwhile is done as one. */
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

/** Make a function that does all work given to it one after the other, also after work that fails. */
export function oneByOne() {
  let last = Promise.resolve();
  return (work) => (last = last.then(work, work));
}
