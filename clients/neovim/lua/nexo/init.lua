-- nexo-lsp for Neovim: says how the server is started; Neovim's own LSP client does the rest.
--
--   require("nexo").setup({ settings = { review = { trigger = "onOpen" } } })
--
-- Neovim 0.11 or newer is configured through vim.lsp.config; older ones (from 0.8) get an autocommand.

local M = {}

M.defaults = {
  cmd = { "nexo-lsp", "serve" },
  filetypes = {
    "python", "javascript", "javascriptreact", "typescript", "typescriptreact", "go", "rust", "java",
    "c", "cpp", "cs", "ruby", "php", "sh", "bash", "lua", "kotlin",
  },
  root_markers = { ".git", ".nexoignore" },
  -- The section `nexo`, without that name: { review = { trigger = "onSave" }, hover = { waitMs = 400 } }.
  settings = {},
  -- Whether the workspaces that you open are trusted. Nothing leaves this machine without it.
  trusted = false,
}

-- The configuration of the client, as vim.lsp.config and vim.lsp.start take it.
local function client_config(options)
  local first = vim.tbl_deep_extend("force", { trusted = options.trusted }, options.settings)
  return {
    cmd = options.cmd,
    filetypes = options.filetypes,
    root_markers = options.root_markers,
    init_options = first,
    settings = { nexo = next(options.settings) and options.settings or vim.empty_dict() },
  }
end

-- For a Neovim without vim.lsp.config: start, or join, the server whenever such a file is opened.
local function start_by_autocommand(config, filetypes, root_markers)
  vim.api.nvim_create_autocmd("FileType", {
    group = vim.api.nvim_create_augroup("nexo", { clear = true }),
    pattern = filetypes,
    callback = function(event)
      local found = vim.fs.find(root_markers, { upward = true, path = vim.fs.dirname(event.file) })[1]
      config.root_dir = found and vim.fs.dirname(found) or vim.fs.dirname(vim.fn.fnamemodify(event.file, ":p"))
      vim.lsp.start(config, { bufnr = event.buf })
    end,
  })
end

-- Options: cmd, filetypes, root_markers, settings, trusted; see M.defaults.
function M.setup(options)
  local merged = vim.tbl_deep_extend("force", M.defaults, options or {})
  local config = client_config(merged)
  if vim.lsp.config and vim.lsp.enable then
    vim.lsp.config("nexo", config)
    vim.lsp.enable("nexo")
  else
    config.name = "nexo"
    start_by_autocommand(config, merged.filetypes, merged.root_markers)
  end
end

return M
