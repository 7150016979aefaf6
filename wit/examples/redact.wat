;; A filter on an edge of a pipeline (shipote:filter@0.1.0): every digit becomes a '#'.
;;
;;   shipote plugin add wit/examples/redact.wat
;;   [[edges]]
;;   from = "log"
;;   to = "archive"
;;   filter = "redact@^1"
(component
  (core module $module
    (memory (export "memory") 4)
    ;; Where the next argument is put; taken back after each call.
    (global $top (mut i32) (i32.const 1024))
    (func (export "realloc") (param $old i32) (param $old-size i32) (param $align i32) (param $size i32) (result i32)
      (local $at i32)
      (local.set $at (i32.and (i32.add (global.get $top) (i32.const 7)) (i32.const -8)))
      (global.set $top (i32.add (local.get $at) (local.get $size)))
      (if (i32.gt_u (global.get $top) (i32.const 262144)) (then (unreachable)))
      (local.get $at))
    (func (export "after") (param i32) (global.set $top (i32.const 1024)))
    ;; An answer lies at 16: which case, then pointer and length.
    (func (export "start") (param i32 i32) (result i32)
      (i32.store (i32.const 16) (i32.const 0))
      (i32.const 16))
    (func (export "chunk") (param $data i32) (param $size i32) (result i32)
      (local $at i32) (local $end i32)
      (local.set $at (local.get $data))
      (local.set $end (i32.add (local.get $data) (local.get $size)))
      (block $done
        (loop $each
          (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
          (if (i32.lt_u (i32.sub (i32.load8_u (local.get $at)) (i32.const 48)) (i32.const 10))
            (then (i32.store8 (local.get $at) (i32.const 35))))
          (local.set $at (i32.add (local.get $at) (i32.const 1)))
          (br $each)))
      (i32.store (i32.const 16) (i32.const 0))
      (i32.store (i32.const 20) (local.get $data))
      (i32.store (i32.const 24) (local.get $size))
      (i32.const 16))
    (func (export "finish") (result i32)
      (i32.store (i32.const 16) (i32.const 0))
      (i32.store (i32.const 20) (i32.const 0))
      (i32.store (i32.const 24) (i32.const 0))
      (i32.const 16)))
  (core instance $core (instantiate $module))
  (func $start (param "args" (list string)) (result (result (error string)))
    (canon lift (core func $core "start") (memory $core "memory") (realloc (func $core "realloc"))
      (post-return (func $core "after"))))
  (func $chunk (param "data" (list u8)) (result (result (list u8) (error string)))
    (canon lift (core func $core "chunk") (memory $core "memory") (realloc (func $core "realloc"))
      (post-return (func $core "after"))))
  (func $finish (result (result (list u8) (error string)))
    (canon lift (core func $core "finish") (memory $core "memory") (post-return (func $core "after"))))
  (instance $filter
    (export "start" (func $start))
    (export "chunk" (func $chunk))
    (export "finish" (func $finish)))
  (export "shipote:filter/filter@0.1.0" (instance $filter)))
