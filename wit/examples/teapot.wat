;; Answers every request with status 418.
(component
  (type $ty-vane:plugin/types@0.1.0 (;0;)
    (instance
      (type (;0;) (enum "l4-peek" "l4-bytes" "l7-request" "l7-response"))
      (export (;1;) "middleware-kind" (type (eq 0)))
      (type (;2;) (list string))
      (type (;3;) (record (field "name" string) (field "kind" 1) (field "stateless" bool) (field "needs-body" bool) (field "inspects" 2) (field "needs-streaming-body" bool)))
      (export (;4;) "middleware-export" (type (eq 3)))
      (type (;5;) (list 4))
      (type (;6;) (record (field "name" string) (field "version" string) (field "abi-version" string) (field "exports" 5)))
      (export (;7;) "metadata" (type (eq 6)))
      (type (;8;) (list u8))
      (type (;9;) (record (field "data" 8) (field "truncated" bool)))
      (export (;10;) "bytes-view" (type (eq 9)))
      (type (;11;) (variant (case "text" string) (case "bytes" 8) (case "int64" s64) (case "uint64" u64) (case "boolean" bool) (case "list-text" 2)))
      (export (;12;) "context-value" (type (eq 11)))
      (type (;13;) (record (field "path" string) (field "value" 12)))
      (export (;14;) "context-entry" (type (eq 13)))
      (type (;15;) (record (field "name" string) (field "value" string)))
      (export (;16;) "header" (type (eq 15)))
      (type (;17;) (option string))
      (type (;18;) (record (field "code" string) (field "message" string) (field "on-error-hint" 17)))
      (export (;19;) "plugin-error" (type (eq 18)))
    )
  )
  (import "vane:plugin/types@0.1.0" (instance $vane:plugin/types@0.1.0 (;0;) (type $ty-vane:plugin/types@0.1.0)))
  (core module $main (;0;)
    (type (;0;) (func (param i32) (result i32)))
    (type (;1;) (func (param i32 i32 i32 i32) (result i32)))
    (type (;2;) (func (result i32)))
    (type (;3;) (func (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
    (memory (;0;) 2 64)
    (global $heap (;0;) (mut i32) i32.const 65536)
    (export "memory" (memory 0))
    (export "cabi_realloc" (func 1))
    (export "vane:plugin/registry@0.1.0#get-metadata" (func 2))
    (export "vane:plugin/handler-l7-request@0.1.0#handle" (func 3))
    (func $alloc (;0;) (type 0) (param i32) (result i32)
      (local $at i32)
      global.get $heap
      i32.const 7
      i32.add
      i32.const -8
      i32.and
      local.set $at
      local.get $at
      local.get 0
      i32.add
      global.set $heap
      block $fits
        loop $more
          global.get $heap
          memory.size
          i32.const 65536
          i32.mul
          i32.le_u
          br_if $fits
          i32.const 1
          memory.grow
          i32.const -1
          i32.eq
          if ;; label = @3
            unreachable
          end
          br $more
        end
      end
      local.get $at
    )
    (func (;1;) (type 1) (param i32 i32 i32 i32) (result i32)
      (local $at i32)
      local.get 3
      call $alloc
      local.set $at
      local.get $at
      local.get 0
      local.get 1
      memory.copy
      local.get $at
    )
    (func (;2;) (type 2) (result i32)
      i32.const 1092
    )
    (func (;3;) (type 3) (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
      i32.const 68
      i32.const 1
      i32.store8
      i32.const 72
      i32.const 418
      i32.store16
      i32.const 84
      i32.const 1024
      i32.store
      i32.const 88
      i32.const 16
      i32.store
      i32.const 64
      i32.const 65536
      global.set $heap
    )
    (data (;0;) (i32.const 1024) "short and stout\0al7-request\00\00\10\04\00\00\0a\00\00\00\02\01\00\00\10\04\00\00\00\00\00\00\00\00\00\00teapot1.0.00.1.04\04\00\00\06\00\00\00:\04\00\00\05\00\00\00?\04\00\00\05\00\00\00\1c\04\00\00\01\00\00\00")
    (@producers
      (processed-by "wit-component" "0.254.2")
    )
  )
  (alias export $vane:plugin/types@0.1.0 "metadata" (type $metadata (;1;)))
  (alias export $vane:plugin/types@0.1.0 "bytes-view" (type $bytes-view (;2;)))
  (alias export $vane:plugin/types@0.1.0 "context-entry" (type $context-entry (;3;)))
  (alias export $vane:plugin/types@0.1.0 "header" (type $header (;4;)))
  (alias export $vane:plugin/types@0.1.0 "plugin-error" (type $plugin-error (;5;)))
  (type (;6;) (list $header))
  (type (;7;) (option $bytes-view))
  (type (;8;) (list $context-entry))
  (type (;9;) (record (field "method" string) (field "uri" string) (field "headers" 6) (field "body" 7) (field "context" 8)))
  (type (;10;) (list u8))
  (type (;11;) (record (field "status" u16) (field "headers" 6) (field "body" 10)))
  (type (;12;) (variant (case "continue") (case "short" 11) (case "close")))
  (core instance $main (;0;) (instantiate $main))
  (alias core export $main "memory" (core memory $memory (;0;)))
  (type (;13;) (func (result $metadata)))
  (alias core export $main "vane:plugin/registry@0.1.0#get-metadata" (core func $vane:plugin/registry@0.1.0#get-metadata (;0;)))
  (alias core export $main "cabi_realloc" (core func $cabi_realloc (;1;)))
  (func $get-metadata (;0;) (type 13) (canon lift (core func $vane:plugin/registry@0.1.0#get-metadata) (memory $memory) string-encoding=utf8))
  (alias export $vane:plugin/types@0.1.0 "middleware-kind" (type $middleware-kind (;14;)))
  (alias export $vane:plugin/types@0.1.0 "middleware-export" (type $middleware-export (;15;)))
  (component $vane:plugin/registry@0.1.0-shim-component (;0;)
    (type (;0;) (enum "l4-peek" "l4-bytes" "l7-request" "l7-response"))
    (import "import-type-middleware-kind" (type (;1;) (eq 0)))
    (type (;2;) (list string))
    (type (;3;) (record (field "name" string) (field "kind" 1) (field "stateless" bool) (field "needs-body" bool) (field "inspects" 2) (field "needs-streaming-body" bool)))
    (import "import-type-middleware-export" (type (;4;) (eq 3)))
    (type (;5;) (list 4))
    (type (;6;) (record (field "name" string) (field "version" string) (field "abi-version" string) (field "exports" 5)))
    (import "import-type-metadata" (type (;7;) (eq 6)))
    (import "import-type-metadata0" (type (;8;) (eq 7)))
    (type (;9;) (func (result 8)))
    (import "import-func-get-metadata" (func (;0;) (type 9)))
    (export (;10;) "metadata" (type 7))
    (type (;11;) (func (result 10)))
    (export (;1;) "get-metadata" (func 0) (func (type 11)))
  )
  (instance $vane:plugin/registry@0.1.0-shim-instance (;1;) (instantiate $vane:plugin/registry@0.1.0-shim-component
      (with "import-func-get-metadata" (func $get-metadata))
      (with "import-type-middleware-kind" (type $middleware-kind))
      (with "import-type-middleware-export" (type $middleware-export))
      (with "import-type-metadata" (type $metadata))
      (with "import-type-metadata0" (type $metadata))
    )
  )
  (export $vane:plugin/registry@0.1.0 (;2;) "vane:plugin/registry@0.1.0" (instance $vane:plugin/registry@0.1.0-shim-instance))
  (type (;16;) (result 12 (error $plugin-error)))
  (type (;17;) (func (param "name" string) (param "input" 9) (result 16)))
  (alias core export $main "vane:plugin/handler-l7-request@0.1.0#handle" (core func $vane:plugin/handler-l7-request@0.1.0#handle (;2;)))
  (func $handle (;1;) (type 17) (canon lift (core func $vane:plugin/handler-l7-request@0.1.0#handle) (memory $memory) (realloc $cabi_realloc) string-encoding=utf8))
  (alias export $vane:plugin/types@0.1.0 "context-value" (type $context-value (;18;)))
  (component $vane:plugin/handler-l7-request@0.1.0-shim-component (;1;)
    (type (;0;) (list u8))
    (type (;1;) (record (field "data" 0) (field "truncated" bool)))
    (import "import-type-bytes-view" (type (;2;) (eq 1)))
    (type (;3;) (list string))
    (type (;4;) (variant (case "text" string) (case "bytes" 0) (case "int64" s64) (case "uint64" u64) (case "boolean" bool) (case "list-text" 3)))
    (import "import-type-context-value" (type (;5;) (eq 4)))
    (type (;6;) (record (field "path" string) (field "value" 5)))
    (import "import-type-context-entry" (type (;7;) (eq 6)))
    (type (;8;) (record (field "name" string) (field "value" string)))
    (import "import-type-header" (type (;9;) (eq 8)))
    (type (;10;) (option string))
    (type (;11;) (record (field "code" string) (field "message" string) (field "on-error-hint" 10)))
    (import "import-type-plugin-error" (type (;12;) (eq 11)))
    (import "import-type-header0" (type (;13;) (eq 9)))
    (type (;14;) (list 13))
    (import "import-type-bytes-view0" (type (;15;) (eq 2)))
    (type (;16;) (option 15))
    (import "import-type-context-entry0" (type (;17;) (eq 7)))
    (type (;18;) (list 17))
    (type (;19;) (record (field "method" string) (field "uri" string) (field "headers" 14) (field "body" 16) (field "context" 18)))
    (import "import-type-l7-request-input" (type (;20;) (eq 19)))
    (type (;21;) (record (field "status" u16) (field "headers" 14) (field "body" 0)))
    (import "import-type-synth-response" (type (;22;) (eq 21)))
    (type (;23;) (variant (case "continue") (case "short" 22) (case "close")))
    (import "import-type-l7-request-decision" (type (;24;) (eq 23)))
    (import "import-type-plugin-error0" (type (;25;) (eq 12)))
    (type (;26;) (result 24 (error 25)))
    (type (;27;) (func (param "name" string) (param "input" 20) (result 26)))
    (import "import-func-handle" (func (;0;) (type 27)))
    (export (;28;) "bytes-view" (type 2))
    (export (;29;) "context-entry" (type 7))
    (export (;30;) "header" (type 9))
    (export (;31;) "plugin-error" (type 12))
    (type (;32;) (list 30))
    (type (;33;) (option 28))
    (type (;34;) (list 29))
    (type (;35;) (record (field "method" string) (field "uri" string) (field "headers" 32) (field "body" 33) (field "context" 34)))
    (export (;36;) "l7-request-input" (type 35))
    (type (;37;) (record (field "status" u16) (field "headers" 32) (field "body" 0)))
    (export (;38;) "synth-response" (type 37))
    (type (;39;) (variant (case "continue") (case "short" 38) (case "close")))
    (export (;40;) "l7-request-decision" (type 39))
    (type (;41;) (result 40 (error 31)))
    (type (;42;) (func (param "name" string) (param "input" 36) (result 41)))
    (export (;1;) "handle" (func 0) (func (type 42)))
  )
  (instance $vane:plugin/handler-l7-request@0.1.0-shim-instance (;3;) (instantiate $vane:plugin/handler-l7-request@0.1.0-shim-component
      (with "import-func-handle" (func $handle))
      (with "import-type-bytes-view" (type $bytes-view))
      (with "import-type-context-value" (type $context-value))
      (with "import-type-context-entry" (type $context-entry))
      (with "import-type-header" (type $header))
      (with "import-type-plugin-error" (type $plugin-error))
      (with "import-type-header0" (type $header))
      (with "import-type-bytes-view0" (type $bytes-view))
      (with "import-type-context-entry0" (type $context-entry))
      (with "import-type-l7-request-input" (type 9))
      (with "import-type-synth-response" (type 11))
      (with "import-type-l7-request-decision" (type 12))
      (with "import-type-plugin-error0" (type $plugin-error))
    )
  )
  (export $vane:plugin/handler-l7-request@0.1.0 (;4;) "vane:plugin/handler-l7-request@0.1.0" (instance $vane:plugin/handler-l7-request@0.1.0-shim-instance))
  (@producers
    (processed-by "wit-component" "0.254.2")
  )
)
