// A classic script, because it must run where modules do not: from file://, and in old browsers.
// It says why the page cannot start; page.js never runs in these cases.
(function () {
  'use strict';
  var words = null;
  if (location.protocol === 'file:') {
    words = ['This page needs a local web server',
      'Browsers do not let a page opened as a file load modules, workers or WebAssembly. In the folder of the project, run', 'node examples/web/serve.mjs',
      'and open the address that it prints.'];
  } else if (typeof WebAssembly === 'undefined') {
    words = ['This browser has no WebAssembly',
      'The engine is a WebAssembly program. It is missing in very old browsers, and where a hardened mode switches it off: in Safari’s Lockdown Mode, leave this site out; in the Tor Browser, choose the security level “Standard”.'];
  } else if (!('noModule' in HTMLScriptElement.prototype) || typeof Worker === 'undefined' || typeof ReadableStream === 'undefined') {
    words = ['This browser is too old', 'The page needs JavaScript modules, workers and streams: Chrome or Edge 80, Firefox 114, Safari 15, or newer.'];
  }
  if (!words) return;
  window.harmonicaBlocked = true;
  var box = document.createElement('div');
  box.className = 'notice';
  box.setAttribute('role', 'alert');
  words.forEach(function (text, index) {
    var part = document.createElement(index === 0 ? 'strong' : text.indexOf('node ') === 0 ? 'code' : 'p');
    part.textContent = text;
    box.appendChild(part);
  });
  document.getElementById('notices').appendChild(box);
  document.getElementById('loading').hidden = true;
  document.getElementById('device').textContent = 'not started';
  document.getElementById('device').setAttribute('data-state', 'stopped');
})();
