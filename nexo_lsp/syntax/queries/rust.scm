; The captures are explained in python.scm.
(function_item name: (_) @name body: (_) @body) @function
(function_signature_item name: (_) @name) @function
(struct_item name: (_) @name body: (_)? @body) @class
(union_item name: (_) @name body: (_) @body) @class
(enum_item name: (_) @name body: (_) @body) @class
(trait_item name: (_) @name body: (_) @body) @class
(impl_item
  type: [
    (type_identifier) @name
    (primitive_type) @name
    (generic_type type: [(type_identifier) @name (scoped_type_identifier name: (_) @name)])
    (scoped_type_identifier name: (_) @name)
    (reference_type) @name
  ]
  body: (_) @body) @class
(mod_item name: (_) @name body: (_) @body) @namespace

(use_declaration) @import
(extern_crate_declaration) @import

(call_expression function: (identifier) @call.name)
(call_expression function: (field_expression field: (_) @call.name))
(call_expression function: (scoped_identifier name: (_) @call.name))
(call_expression function: (generic_function function: (identifier) @call.name))
(call_expression function: (generic_function function: (field_expression field: (_) @call.name)))
(call_expression function: (generic_function function: (scoped_identifier name: (_) @call.name)))
(macro_invocation macro: (identifier) @call.name)
(macro_invocation macro: (scoped_identifier name: (_) @call.name))

(line_comment) @comment
(block_comment) @comment
