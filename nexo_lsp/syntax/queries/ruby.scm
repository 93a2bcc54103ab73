; The captures are explained in python.scm.
(method name: (_) @name body: (_)? @body) @function
(singleton_method name: (_) @name body: (_)? @body) @method
(class name: (_) @name body: (_)? @body) @class
(module name: (_) @name body: (_)? @body) @class
(singleton_class value: (_) @name body: (_)? @body) @class

((call !receiver method: (identifier) @_require) @import
  (#any-of? @_require "require" "require_relative" "load" "autoload"))

(call method: (identifier) @call.name)
(call method: (constant) @call.name)

(comment) @comment
