;; Answers its argument and one.
(component
  (core module $m (func (export "f") (param i32) (result i32) (i32.add (local.get 0) (i32.const 1))))
  (core instance $i (instantiate $m))
  (func $f (param "n" u32) (result u32) (canon lift (core func $i "f")))
  (instance $e (export "value" (func $f)))
  (export "my:leaf/root" (instance $e)))
