(function (settings) {
  /* __VERSION__ */
})(__SETTINGS__);
