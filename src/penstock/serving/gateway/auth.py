"""API keys, of which the gateway holds digests only: a filter in Lua hashes what a caller shows and looks it up.

Envoy's own filter for API keys wants them in the clear. SHA-256 in LuaJIT takes some microseconds of a request.
"""

from __future__ import annotations

FILTER_SOURCE = r"""
local band, bxor, bnot, ror, shr, tobit, tohex = bit.band, bit.bxor, bit.bnot, bit.ror, bit.rshift, bit.tobit, bit.tohex
local K = {}
do
  local function frac(x) return tobit(math.floor((x - math.floor(x)) * 4294967296)) end
  local n, found = 2, 0
  while found < 64 do
    local prime = true
    for d = 2, math.floor(math.sqrt(n)) do if n % d == 0 then prime = false break end end
    if prime then found = found + 1; K[found] = frac(n ^ (1 / 3)) end
    n = n + 1
  end
end

local function sha256(text)
  local bits = #text * 8
  text = text .. "\128" .. string.rep("\0", (55 - #text) % 64)
  for i = 7, 0, -1 do text = text .. string.char(math.floor(bits / 256 ^ i) % 256) end
  local h = {tobit(0x6a09e667), tobit(0xbb67ae85), tobit(0x3c6ef372), tobit(0xa54ff53a),
             tobit(0x510e527f), tobit(0x9b05688c), tobit(0x1f83d9ab), tobit(0x5be0cd19)}
  local w = {}
  for at = 1, #text, 64 do
    for i = 1, 16 do
      local a, b, c, d = string.byte(text, at + i * 4 - 4, at + i * 4 - 1)
      w[i] = tobit(a * 16777216 + b * 65536 + c * 256 + d)
    end
    for i = 17, 64 do
      local x, y = w[i - 15], w[i - 2]
      w[i] = tobit(w[i - 16] + bxor(ror(x, 7), ror(x, 18), shr(x, 3)) + w[i - 7] + bxor(ror(y, 17), ror(y, 19), shr(y, 10)))
    end
    local a, b, c, d, e, f, g, k = h[1], h[2], h[3], h[4], h[5], h[6], h[7], h[8]
    for i = 1, 64 do
      local one = tobit(k + bxor(ror(e, 6), ror(e, 11), ror(e, 25)) + bxor(band(e, f), band(bnot(e), g)) + K[i] + w[i])
      local two = tobit(bxor(ror(a, 2), ror(a, 13), ror(a, 22)) + bxor(band(a, b), band(a, c), band(b, c)))
      k, g, f, e, d, c, b, a = g, f, e, tobit(d + one), c, b, a, tobit(one + two)
    end
    h[1], h[2], h[3], h[4] = tobit(h[1] + a), tobit(h[2] + b), tobit(h[3] + c), tobit(h[4] + d)
    h[5], h[6], h[7], h[8] = tobit(h[5] + e), tobit(h[6] + f), tobit(h[7] + g), tobit(h[8] + k)
  end
  local hex = ""
  for i = 1, 8 do hex = hex .. tohex(h[i]) end
  return hex
end

local function refuse(handle, text)
  local headers = {[":status"] = "401", ["www-authenticate"] = "Bearer"}
  handle:respond(headers, text)
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local shown = headers:get("x-api-key")
  if shown == nil then
    local said = headers:get("authorization")
    if said ~= nil then shown = string.match(said, "^[Bb]earer +(%S+)$") end
  end
  if shown == nil or #shown > 4096 then return refuse(handle, "show an API key of this service: Authorization: Bearer KEY") end
  local digest = sha256(shown)
  if handle:filterContext():get(digest) == nil then return refuse(handle, "this API key is not one of this service") end
  headers:remove("x-api-key")
  headers:remove("authorization")
  handle:streamInfo():dynamicMetadata():set("penstock", "key", string.sub(digest, 1, 12))
end
"""
