// Package statejson reads the JSON of saved states as encoding/json does, in a fraction
// of the time for a program that has just started: a restore is over before
// encoding/json has made its tables of the state's types.
//
// It reads what encoding/json writes of plain types by itself: structs, slices, arrays,
// pointers, integers, booleans, strings without escapes, and types with an
// UnmarshalJSON or UnmarshalText of their own. Everything else it leaves to
// encoding/json, broken text among that, so there is one judge of what is right and one
// author of errors.
package statejson

import (
	"encoding/json"
	"reflect"
)

// maxDepth is how deeply the values may lie in each other that this package reads by
// itself.
const maxDepth = 64

// Unmarshal sets what into points to from p: to what json.Unmarshal makes of a zero
// value of its type. The result shares no memory with p. Errors are those of
// json.Unmarshal.
func Unmarshal(p []byte, into any) error {
	v := reflect.ValueOf(into)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return json.Unmarshal(p, into) // which says so
	}
	v = v.Elem()
	if quick(p, v) {
		return nil
	}
	v.SetZero()
	return json.Unmarshal(p, into)
}

// quick is Unmarshal for what this package reads by itself; it tells whether p is such.
// If not, v is left with anything.
func quick(p []byte, v reflect.Value) bool {
	v.SetZero()
	r := reader{text: p}
	return r.value(make(planner).plan(v.Type()), v) && r.atEnd()
}
