; The captures are explained in python.scm.
(method_declaration name: (_) @name body: (_)? @body) @method
(constructor_declaration name: (_) @name body: (_)? @body) @method
(destructor_declaration name: (_) @name body: (_)? @body) @method
(local_function_statement name: (_) @name body: (_) @body) @function
(class_declaration name: (_) @name body: (_)? @body) @class
(interface_declaration name: (_) @name body: (_) @body) @class
(struct_declaration name: (_) @name body: (_)? @body) @class
(enum_declaration name: (_) @name body: (_) @body) @class
(record_declaration name: (_) @name body: (_)? @body) @class
(namespace_declaration name: (_) @name body: (_) @body) @namespace

(using_directive) @import

(invocation_expression function: (identifier) @call.name)
(invocation_expression function: (member_access_expression name: (identifier) @call.name))
(invocation_expression function: (member_access_expression name: (generic_name . (identifier) @call.name)))
(invocation_expression function: (generic_name . (identifier) @call.name))
(invocation_expression
  function: (conditional_access_expression (member_binding_expression name: (identifier) @call.name)))
(object_creation_expression type: (identifier) @call.name)
(object_creation_expression type: (generic_name . (identifier) @call.name))

(comment) @comment
