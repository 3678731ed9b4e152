package statejson

import (
	"bytes"
	"encoding"
	"encoding/json"
	"reflect"
	"strings"
)

// plan is how values of a type are read.
type plan struct {
	method method
	// kind is the type's, reflect.Invalid for a type that is left to encoding/json.
	kind reflect.Kind
	// elem is the plan of a slice's, array's or pointer's elements.
	elem *plan
	// fields are a struct's, in the order in which they are written.
	fields []field
}

// method says that a type reads itself.
type method int

const (
	noMethod method = iota
	unmarshalJSON
	unmarshalText
)

// field is a field of a struct, or of one that is embedded in it.
type field struct {
	name  string
	index []int
	plan  *plan
}

// maxFields is what fits into a word with a bit for each.
const maxFields = 64

var (
	jsonUnmarshaler = reflect.TypeFor[json.Unmarshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
	jsonNumber      = reflect.TypeFor[json.Number]()
)

// planner makes plans, one for each type.
type planner map[reflect.Type]*plan

func (m planner) plan(t reflect.Type) *plan {
	if p := m[t]; p != nil {
		return p
	}
	p := &plan{kind: t.Kind()}
	m[t] = p // before its elements, which may be of the same type
	p.method = methodOf(t)
	switch {
	case p.method != noMethod && t.Name() == "", t == jsonNumber:
		*p = plan{kind: reflect.Invalid} // encoding/json has rules of its own
	case p.method != noMethod:
	case p.kind == reflect.Slice, p.kind == reflect.Array, p.kind == reflect.Pointer:
		p.elem = m.plan(t.Elem())
	case p.kind == reflect.Struct:
		if !m.addFields(p, t, nil) || len(p.fields) > maxFields {
			p.kind = reflect.Invalid
		}
	}
	return p
}

// methodOf finds out whether a type reads itself.
func methodOf(t reflect.Type) method {
	if t.PkgPath() == "" && t.Kind() != reflect.Struct {
		return noMethod // it has none at all, and PointerTo takes its time
	}
	switch pointer := reflect.PointerTo(t); {
	case pointer.Implements(jsonUnmarshaler):
		return unmarshalJSON
	case pointer.Implements(textUnmarshaler):
		return unmarshalText
	}
	return noMethod
}

// addFields adds the fields of a struct that lies at index in that of the plan. It
// fails where the rules are more than this package knows.
func (m planner) addFields(p *plan, t reflect.Type, index []int) bool {
	for i := range t.NumField() {
		f := t.Field(i)
		tag := f.Tag.Get("json")
		name, options, _ := strings.Cut(tag, ",")
		at := append(index[:len(index):len(index)], i)
		switch {
		case tag == "-":
			continue
		case f.Anonymous && name == "" && f.Type.Kind() == reflect.Struct:
			if !m.addFields(p, f.Type, at) {
				return false
			}
			continue
		case f.Anonymous:
			return false
		case !f.IsExported():
			continue
		case strings.Contains(options, "string"), strings.Trim(name, nameLetters) != "":
			return false
		case name == "":
			name = f.Name
		}
		if !p.add(field{name, at, m.plan(f.Type)}) {
			return false
		}
	}
	return true
}

// nameLetters are those of the names in tags.
const nameLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"

// add adds a field. Of two with one name the outer one counts.
func (p *plan) add(f field) bool {
	for i, o := range p.fields {
		switch {
		case o.name != f.name:
		case len(o.index) == len(f.index):
			return false
		case len(o.index) > len(f.index):
			p.fields[i] = f
			return true
		default:
			return true
		}
	}
	p.fields = append(p.fields, f)
	return true
}

// What find finds besides fields.
const (
	unknown = -1 // a name that is to be ignored
	unclear = -2 // one that is not, by the rules of encoding/json
)

// find finds the field of a name, which is likely to be that at next.
func (p *plan) find(name []byte, next int) int {
	if next < len(p.fields) && p.fields[next].name == string(name) {
		return next
	}
	for i := range p.fields {
		if p.fields[i].name == string(name) {
			return i
		}
	}
	for i := range p.fields {
		if bytes.EqualFold([]byte(p.fields[i].name), name) {
			return unclear
		}
	}
	return unknown
}
