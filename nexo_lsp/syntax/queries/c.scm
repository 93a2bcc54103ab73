; The captures are explained in python.scm.
(function_definition declarator: (_) @declarator body: (_) @body) @function
(declaration declarator: (function_declarator) @declarator) @function
(declaration declarator: (pointer_declarator declarator: (function_declarator)) @declarator) @function
(struct_specifier name: (_) @name body: (_) @body) @class
(union_specifier name: (_) @name body: (_) @body) @class
(enum_specifier name: (_) @name body: (_) @body) @class
(type_definition
  type: [
    (struct_specifier !name body: (_) @body)
    (union_specifier !name body: (_) @body)
    (enum_specifier !name body: (_) @body)
  ] @head
  declarator: (type_identifier) @name) @class

(preproc_include) @import

(call_expression function: (identifier) @call.name)
(call_expression function: (field_expression field: (field_identifier) @call.name))

(comment) @comment
