; Captures, the same in every file of this folder:
;   @function @method @class @namespace   a whole definition, one in each match; a function whose parent is a
;                                         class becomes a method by itself
;   @name        what names it; or @declarator, a C declarator that the name is found in
;   @body        its body
;   @head        the node that holds the body, where that is not the definition itself (`f = function() end`)
;   @import      a whole import statement
;   @call.name   the last part of what is called
;   @comment     a comment

(function_definition name: (identifier) @name body: (block) @body) @function
(class_definition name: (identifier) @name body: (block) @body) @class

(import_statement) @import
(import_from_statement) @import
(future_import_statement) @import

(call function: (identifier) @call.name)
(call function: (attribute attribute: (identifier) @call.name))
(decorator (identifier) @call.name)

(comment) @comment
