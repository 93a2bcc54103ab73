; The captures are explained in python.scm.
(function_declaration name: (_) @name body: (_)? @body) @function
(method_declaration name: (_) @name body: (_)? @body) @method
(type_spec name: (_) @name type: [(struct_type (field_declaration_list) @body) (interface_type) @body]) @class
(method_elem name: (_) @name) @method
(short_var_declaration
  left: (expression_list . (identifier) @name .)
  right: (expression_list . (func_literal body: (_) @body) @head .)) @function
(var_spec
  name: (identifier) @name
  value: (expression_list . (func_literal body: (_) @body) @head .)) @function

(import_declaration) @import

(call_expression function: (identifier) @call.name)
(call_expression function: (selector_expression field: (_) @call.name))
(call_expression function: (parenthesized_expression (identifier) @call.name))

(comment) @comment
