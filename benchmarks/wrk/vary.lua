-- Like post.lua, but no two of 4096 requests in a row have the same head: each carries a request id of its own.
--
-- They are formatted once, so that the load generator stays cheap here as well.

dofile(debug.getinfo(1, "S").source:match("^@(.*/)") .. "post.lua")

local requests, at = {}, 0
local read_body = init

function init(args)
  read_body(args)
  for i = 1, 4096 do
    wrk.headers["X-Request-Id"] = string.format("%032x", i * 2654435761)
    requests[i] = wrk.format()
  end
end

function request()
  at = at % 4096 + 1
  return requests[at]
end
