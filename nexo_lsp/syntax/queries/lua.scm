; The captures are explained in python.scm.
(function_declaration name: (identifier) @name body: (_)? @body) @function
(function_declaration name: (dot_index_expression field: (_) @name) body: (_)? @body) @function
(function_declaration name: (method_index_expression method: (_) @name) body: (_)? @body) @method
(assignment_statement
  (variable_list . name: [(identifier) @name (dot_index_expression field: (_) @name)] .)
  (expression_list . value: (function_definition body: (_)? @body) @head .)) @function
(field name: (identifier) @name value: (function_definition body: (_)? @body) @head) @method

((variable_declaration
  (assignment_statement (expression_list value: (function_call name: (identifier) @_require)))) @import
  (#eq? @_require "require"))
((function_call name: (identifier) @_require) @import
  (#eq? @_require "require"))

(function_call name: (identifier) @call.name)
(function_call name: (dot_index_expression field: (_) @call.name))
(function_call name: (method_index_expression method: (_) @call.name))

(comment) @comment
