; The captures are explained in python.scm.
(method_declaration name: (_) @name body: (_)? @body) @method
(constructor_declaration name: (_) @name body: (_) @body) @method
(compact_constructor_declaration name: (_) @name body: (_) @body) @method
(class_declaration name: (_) @name body: (_) @body) @class
(interface_declaration name: (_) @name body: (_) @body) @class
(annotation_type_declaration name: (_) @name body: (_) @body) @class
(enum_declaration name: (_) @name body: (_) @body) @class
(record_declaration name: (_) @name body: (_) @body) @class

(import_declaration) @import

(method_invocation name: (_) @call.name)
(object_creation_expression type: (type_identifier) @call.name)
(object_creation_expression type: (generic_type . (type_identifier) @call.name))

(line_comment) @comment
(block_comment) @comment
