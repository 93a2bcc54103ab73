; The captures are explained in python.scm. TSX uses this file too.
(class_declaration name: (_) @name body: (_) @body) @class
(abstract_class_declaration name: (_) @name body: (_) @body) @class
(interface_declaration name: (_) @name body: (_) @body) @class
(enum_declaration name: (_) @name body: (_) @body) @class
(internal_module name: (_) @name body: (_) @body) @namespace
(module name: (_) @name body: (_) @body) @namespace
(function_signature name: (_) @name) @function
(method_signature name: (_) @name) @method
(abstract_method_signature name: (_) @name) @method
(public_field_definition
  name: (_) @name
  value: [(arrow_function body: (_) @body) (function_expression body: (_) @body)] @head) @method
(function_declaration name: (_) @name body: (_) @body) @function
(generator_function_declaration name: (_) @name body: (_) @body) @function
(method_definition name: (_) @name body: (_) @body) @method
(variable_declarator
  name: (identifier) @name
  value: [(arrow_function body: (_) @body) (function_expression body: (_) @body) (generator_function body: (_) @body)] @head) @function
(assignment_expression
  left: [(identifier) @name (member_expression property: (_) @name)]
  right: [(arrow_function body: (_) @body) (function_expression body: (_) @body)] @head) @function
(pair
  key: (_) @name
  value: [(arrow_function body: (_) @body) (function_expression body: (_) @body)] @head) @method
(variable_declarator name: (identifier) @name value: (class body: (_) @body) @head) @class

(import_statement) @import
((lexical_declaration (variable_declarator value: (call_expression function: (identifier) @_require))) @import
  (#eq? @_require "require"))
((variable_declaration (variable_declarator value: (call_expression function: (identifier) @_require))) @import
  (#eq? @_require "require"))

(call_expression function: (identifier) @call.name)
(call_expression function: (member_expression property: (_) @call.name))
(new_expression constructor: (identifier) @call.name)
(new_expression constructor: (member_expression property: (_) @call.name))

(comment) @comment
