; The captures are explained in python.scm.
(function_definition name: (word) @name body: (_) @body) @function

((command name: (command_name (word) @_source)) @import
  (#any-of? @_source "source" "."))

(command name: (command_name (word) @call.name))

(comment) @comment
