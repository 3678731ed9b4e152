package statejson

import (
	"encoding"
	"encoding/base64"
	"encoding/json"
	"reflect"
)

// value reads a value into v, which is zero. Like all methods of reader it tells whether
// that went well; if not, the whole text is left to encoding/json.
func (r *reader) value(p *plan, v reflect.Value) bool {
	if r.depth++; r.depth > maxDepth {
		return false
	}
	defer func() { r.depth-- }()
	switch p.method {
	case unmarshalJSON:
		text, ok := r.raw()
		return ok && text[0] != 'n' && v.Addr().Interface().(json.Unmarshaler).UnmarshalJSON(text) == nil
	case unmarshalText:
		text, ok := r.string()
		return ok && v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText(text) == nil
	}
	switch p.kind {
	case reflect.Bool:
		v.SetBool(r.peek() == 't')
		return r.word("true") || r.word("false")
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n, ok := r.signed()
		v.SetInt(n)
		return ok && v.Int() == n
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, ok := r.unsigned()
		v.SetUint(n)
		return ok && v.Uint() == n
	case reflect.String:
		text, ok := r.string()
		v.SetString(string(text))
		return ok
	case reflect.Array:
		return r.array(p, v)
	case reflect.Struct:
		return r.object(p, v)
	case reflect.Slice:
		return r.word("null") || r.slice(p, v)
	case reflect.Pointer:
		if r.word("null") {
			return true
		}
		v.Set(reflect.New(v.Type().Elem()))
		return r.value(p.elem, v.Elem())
	case reflect.Map, reflect.Interface:
		return r.word("null")
	}
	return false
}

// object reads a struct.
func (r *reader) object(p *plan, v reflect.Value) bool {
	if !r.take('{') {
		return false
	}
	if r.take('}') {
		return true
	}
	var seen uint64
	for next := 0; ; {
		name, ok := r.string()
		if !ok || !r.take(':') {
			return false
		}
		switch i := p.find(name, next); {
		case i == unknown:
			if !r.skip() {
				return false
			}
		case i == unclear, seen>>i&1 == 1:
			return false
		default:
			seen |= 1 << i
			next = i + 1
			if !r.value(p.fields[i].plan, v.FieldByIndex(p.fields[i].index)) {
				return false
			}
		}
		if !r.take(',') {
			return r.take('}')
		}
	}
}

// array reads an array that is full.
func (r *reader) array(p *plan, v reflect.Value) bool {
	ok := r.take('[')
	for i := range v.Len() {
		ok = ok && (i == 0 || r.take(',')) && r.value(p.elem, v.Index(i))
	}
	return ok && r.take(']')
}

// slice reads a slice, one of bytes from base64.
func (r *reader) slice(p *plan, v reflect.Value) bool {
	if p.elem.kind == reflect.Uint8 && r.peek() == '"' {
		text, ok := r.string()
		b := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
		n, err := base64.StdEncoding.Decode(b, text)
		v.SetBytes(b[:n])
		return ok && err == nil
	}
	if !r.take('[') {
		return false
	}
	if r.take(']') {
		v.Set(reflect.MakeSlice(v.Type(), 0, 0))
		return true
	}
	for i := 0; ; i++ {
		if i == v.Cap() {
			v.Grow(1)
		}
		v.SetLen(i + 1)
		if !r.value(p.elem, v.Index(i)) {
			return false
		}
		if !r.take(',') {
			return r.take(']')
		}
	}
}
