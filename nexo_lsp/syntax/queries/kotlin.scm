; The captures are explained in python.scm.
(function_declaration name: (_) @name (function_body)? @body) @function
(secondary_constructor "constructor" @name (block)? @body) @method
(class_declaration name: (_) @name [(class_body) (enum_class_body)]? @body) @class
(object_declaration name: (_) @name (class_body)? @body) @class
(companion_object "companion" @name (class_body)? @body) @class
(property_declaration
  (variable_declaration (identifier) @name)
  [(lambda_literal) @body (anonymous_function (function_body) @body)] @head) @function

(import) @import

(call_expression . (identifier) @call.name)
(call_expression . (navigation_expression (identifier) @call.name .))

(line_comment) @comment
(block_comment) @comment
