package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
)

// maxBody bounds a request's body in bytes: all of them are a few fields.
const maxBody = 64 << 10

// maxDepth bounds how deep the objects of a body are nested.
const maxDepth = 16

// read decodes the body of a PUT or PATCH into v. It is as strict as Firecracker is:
// a client that sends a field expects something of it.
func (r *request) read(v any) error {
	text, err := io.ReadAll(r.Body)
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return fmt.Errorf("the request's body is larger than %d bytes", large.Limit)
	case err != nil:
		return fmt.Errorf("the request's body: %w", err)
	case len(text) == 0:
		return fault(fmt.Sprintf("Empty %s request.", r.Method))
	}
	if err := decode(text, v); err != nil {
		return fault(fmt.Sprintf("An error occurred when deserializing the json body of a request: %v.", err))
	}
	return nil
}

// decode decodes an object into the struct that v points at. Fields that the struct
// does not have are an error, and so is the absence of those whose tag says
// api:"required".
func decode(text []byte, v any) error {
	if err := checkKeys(text); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	var kind *json.UnmarshalTypeError
	switch err := d.Decode(v); {
	case errors.As(err, &kind):
		return fmt.Errorf("%s where %s wants %s", kind.Value, fieldName(kind.Field), kindName(kind.Type))
	case err != nil:
		return errors.New(strings.TrimPrefix(err.Error(), "json: "))
	}
	var object any
	if err := json.Unmarshal(text, &object); err != nil {
		return err
	}
	return checkRequired(reflect.TypeOf(v).Elem(), object)
}

func fieldName(path string) string {
	if path == "" {
		return "the body"
	}
	return "`" + path + "`"
}

// kindName is a type as JSON calls it.
func kindName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a string"
	case reflect.Struct, reflect.Map:
		return "an object"
	case reflect.Slice:
		return "an array"
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "a whole number from 0"
	}
	return "a whole number"
}

// checkKeys checks what encoding/json is lenient about: keys that come twice, and keys
// in another spelling than the field's. All fields are in small letters.
func checkKeys(text []byte) error {
	d := json.NewDecoder(bytes.NewReader(text))
	if err := checkValue(d, 0); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something behind the object")
	}
	return nil
}

func checkValue(d *json.Decoder, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("objects nested more than %d deep", maxDepth)
	}
	open, err := d.Token()
	if err != nil {
		return plainEOF(err)
	}
	if open != json.Delim('{') && open != json.Delim('[') {
		return nil
	}
	seen := make(map[string]bool)
	for d.More() {
		if open == json.Delim('{') {
			token, err := d.Token()
			if err != nil {
				return plainEOF(err)
			}
			key, _ := token.(string)
			if seen[key] {
				return fmt.Errorf("duplicate field `%s`", key)
			}
			seen[key] = true
			if strings.ContainsFunc(key, func(c rune) bool { return c >= 0x80 || 'A' <= c && c <= 'Z' }) {
				return fmt.Errorf("unknown field `%s`", key)
			}
		}
		if err := checkValue(d, depth+1); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return plainEOF(err)
}

func plainEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// checkRequired checks that an object that was decoded into a t has what a t needs.
func checkRequired(t reflect.Type, v any) error {
	switch t.Kind() {
	case reflect.Pointer:
		return checkRequired(t.Elem(), v)
	case reflect.Slice:
		list, _ := v.([]any)
		for _, item := range list {
			if err := checkRequired(t.Elem(), item); err != nil {
				return err
			}
		}
		return nil
	case reflect.Struct:
	default:
		return nil
	}
	object, ok := v.(map[string]any)
	if !ok {
		return errors.New("null where an object is wanted")
	}
	for field := range t.Fields() {
		if field.Anonymous {
			if err := checkRequired(field.Type, v); err != nil {
				return err
			}
			continue
		}
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		value := object[name]
		if value == nil && field.Tag.Get("api") == "required" {
			return fmt.Errorf("missing field `%s`", name)
		}
		if value == nil {
			continue
		}
		if err := checkRequired(field.Type, value); err != nil {
			return err
		}
	}
	return nil
}
