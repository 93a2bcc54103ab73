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

(field_declaration declarator: (function_declarator) @declarator) @function
(field_declaration declarator: (pointer_declarator declarator: (function_declarator)) @declarator) @function
(field_declaration declarator: (reference_declarator (function_declarator)) @declarator) @function
(declaration declarator: (reference_declarator (function_declarator)) @declarator) @function
(function_definition declarator: (_) @declarator [(default_method_clause) (delete_method_clause)]) @function
(declaration
  declarator: (init_declarator declarator: (identifier) @name value: (lambda_expression body: (_) @body) @head)) @function
(class_specifier name: (_) @name body: (_) @body) @class
(namespace_definition name: (_) @name body: (_) @body) @namespace

(using_declaration) @import

(call_expression function: (qualified_identifier name: (identifier) @call.name))
(call_expression function: (qualified_identifier name: (qualified_identifier name: (identifier) @call.name)))
(call_expression function: (qualified_identifier name: (template_function name: (identifier) @call.name)))
(call_expression function: (template_function name: (identifier) @call.name))
(call_expression function: (field_expression field: (template_method name: (field_identifier) @call.name)))
(new_expression type: (type_identifier) @call.name)
