-- What a user does, in a real Neovim: open a file, see diagnostics, hover, implement a stub, undo and redo it,
-- save. Run as `nvim --headless --clean -l e2e.lua`; the last line printed is NVIM-DONE only if all went well,
-- because `nvim -l` may end early with exit code 0.

local env = vim.env
local settings = vim.json.decode(env.E2E_SETTINGS)
local patience = tonumber(env.E2E_PATIENCE_MS)

local function say(...)
  io.stdout:write(table.concat({ ... }, " ") .. "\n")
  io.stdout:flush()
end

local function fail(what, detail)
  say("FAIL", what, detail or "")
  os.exit(1)
end

-- Wait until `condition` holds, and give what it gave.
local function wait_for(what, condition)
  local value
  local held = vim.wait(patience, function()
    value = condition()
    return value and true or false
  end, 20)
  if not held then
    fail(what, vim.inspect(vim.api.nvim_buf_get_lines(0, 0, -1, false)) .. vim.inspect(vim.diagnostic.get(0)))
  end
  say("OK", what)
  return value
end

local function text()
  return table.concat(vim.api.nvim_buf_get_lines(0, 0, -1, false), "\n")
end

local function put_cursor_on(pattern)
  local line = vim.fn.search(pattern, "w")
  if line == 0 then
    fail("the file has no " .. pattern)
  end
end

vim.opt.runtimepath:append(env.E2E_CLIENT)
vim.cmd("filetype on")
require("nexo").setup({ cmd = vim.json.decode(env.E2E_SERVER), settings = settings })
vim.cmd.edit(env.E2E_FILE)

wait_for("attached", function()
  local client = vim.lsp.get_clients({ bufnr = 0, name = "nexo" })[1]
  return client and client.initialized
end)

local diagnostics = wait_for("diagnostics", function()
  local found = vim.diagnostic.get(0)
  return #found > 0 and found
end)
for _, diagnostic in ipairs(diagnostics) do
  say("DIAGNOSTIC", vim.json.encode({
    line = diagnostic.lnum,
    source = diagnostic.source,
    severity = diagnostic.severity,
    message = diagnostic.message,
  }))
end

-- The first hover may only say that the explanation is coming; then the next one has it.
put_cursor_on(env.E2E_STUB)
local function float_text()
  for _, window in ipairs(vim.api.nvim_list_wins()) do
    if vim.api.nvim_win_get_config(window).relative ~= "" then
      local lines = vim.api.nvim_buf_get_lines(vim.api.nvim_win_get_buf(window), 0, -1, false)
      vim.api.nvim_win_close(window, true)
      return table.concat(lines, "\n")
    end
  end
end
vim.lsp.buf.hover()
local hover = wait_for("hover", float_text)
say("HOVER", vim.json.encode(hover))

local before = text()
put_cursor_on(env.E2E_STUB)
vim.lsp.buf.code_action({
  apply = true,
  filter = function(action)
    return action.kind == "refactor.rewrite.nexo.generate"
  end,
})
wait_for("generated", function()
  return text() ~= before
end)
local after = text()
vim.cmd("silent undo")
if text() ~= before then
  fail("one undo takes it back", text())
end
vim.cmd("silent redo")
if text() ~= after then
  fail("one redo brings it back", text())
end
vim.cmd("silent write")

local client = vim.lsp.get_clients({ name = "nexo" })[1]
client:stop()
wait_for("stopped", function()
  return client:is_stopped()
end)
say("NVIM-DONE")
os.exit(0)
