// The search takes a leading "-" for "pages without this word", so --max-cost finds nothing; remove it.
addEventListener(
  "input",
  ({ target }) => {
    if (target.matches('input[name="query"]')) {
      const words = target.value.replace(/(^|\s)-+(?=\w)/g, "$1");
      if (words !== target.value) target.value = words;
    }
  },
  true,
);
