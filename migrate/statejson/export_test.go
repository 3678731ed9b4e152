package statejson

import "reflect"

// Quick is quick for a pointer.
func Quick(p []byte, into any) bool { return quick(p, reflect.ValueOf(into).Elem()) }
