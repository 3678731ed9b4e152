package statejson

import (
	"bytes"
	"encoding/json"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"
)

// Everything has what there is in states, and more.
type Everything struct {
	Embedded
	unexported
	Bool    bool
	Int8    int8
	Int64   int64
	Uint8   uint8
	Uint64  uint64
	Text    string
	Named   uint16 `json:"other_name,omitempty"`
	Left    int    `json:"-"`
	Bytes   []byte
	Octets  [3]byte
	Words   []uint32
	Pointer *Element
	List    []*Element
	Array   [2]Element
	Raw     json.RawMessage `json:",omitempty"`
	Time    time.Time
	Upper   Upper
	Map     map[string]int
	Any     any
	Float   float64 `json:",omitempty"`
	_       int
}

// Embedded has a field that Everything has as well, which is the one that counts.
type Embedded struct {
	First uint32
	Bool  string
}

type unexported struct{ Second int }

// Element may have further ones.
type Element struct {
	Number uint64
	More   []Element
}

// Upper reads itself.
type Upper string

// MarshalText is that of encoding.TextMarshaler.
func (u Upper) MarshalText() ([]byte, error) { return []byte(u), nil }

// UnmarshalText is that of encoding.TextUnmarshaler.
func (u *Upper) UnmarshalText(text []byte) error {
	*u = Upper(bytes.ToUpper(text))
	return nil
}

func full() *Everything {
	return &Everything{
		Embedded: Embedded{First: math.MaxUint32}, unexported: unexported{-2},
		Bool: true, Int8: -128, Int64: math.MinInt64, Uint8: 255, Uint64: math.MaxUint64, Text: "Grüße", Named: 7,
		Bytes: []byte("bytes\x00\xff"), Octets: [3]byte{1, 2, 3}, Words: []uint32{0, 10, math.MaxUint32},
		Pointer: &Element{Number: 1, More: []Element{{}, {Number: 2, More: []Element{}}}},
		List:    []*Element{nil, {Number: 3}}, Array: [2]Element{{Number: 4}, {Number: 5}},
		Raw: json.RawMessage(`{"a":[1,-2,true,false,null,"x",{}],"b":{}}`), Time: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Upper: "UP",
	}
}

// TestTaken has texts that are read without encoding/json, and as that reads them.
func TestTaken(t *testing.T) {
	marshaled, err := json.Marshal(full())
	if err != nil {
		t.Fatal(err)
	}
	indented, err := json.MarshalIndent(full(), " ", "\t")
	if err != nil {
		t.Fatal(err)
	}
	empty, err := json.Marshal(Everything{Raw: json.RawMessage("{}")})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		string(marshaled), string(indented), string(empty), `{}`, " {\n} \r\n",
		`{"Uint8": 7, "Second": 3, "First": 1, "Text": ""}`, // in another order
		`{"Gone": [{"a": [[], {}, -1, "x"]}], "Int64": -0, "Words": [], "Bytes": "", "List": null}`,
		`{"Bytes": [1, 2]}`,
	} {
		var got, want Everything
		got.Text = "before"
		if !quick([]byte(text), reflect.ValueOf(&got).Elem()) {
			t.Errorf("left to encoding/json: %s", text)
		}
		if err := json.Unmarshal([]byte(text), &want); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s\nis %+v\nwant %+v, %v", text, got, want, err)
		}
	}
}

// TestLeft has texts that are left to encoding/json: its result and its error count.
func TestLeft(t *testing.T) {
	for _, text := range []string{
		``, ` `, `null`, `[]`, `{`, `}`, `{"Text"}`, `{"Text":}`, `{"Text": "x"`, `{"Text": "x"} {}`, `{"Text": "x",}`, `{"Text" "x"}`,
		`{"Text": "\u0041"}`, `{"Te\u0078t": "x"}`, "{\"Text\": \"\xff\"}", "{\"Text\": \"a\nb\"}", `{"Text": "x`, `{"Text": 1}`,
		`{"text": "x"}`, `{"Text": "x", "Text": "y"}`, `{"Text": null}`,
		`{"Bool": 1}`, `{"Bool": tru}`, `{"Bool": truex}`,
		`{"Uint8": 256}`, `{"Uint8": -1}`, `{"Uint8": 01}`, `{"Uint8": 1.0}`, `{"Uint8": 1e2}`, `{"Uint8": "1"}`, `{"Uint8": }`, `{"Uint64": 18446744073709551616}`,
		`{"Int8": 128}`, `{"Int8": -129}`, `{"Int8": - 1}`, `{"Int8": -}`, `{"Int64": 9223372036854775808}`, `{"Int64": -9223372036854775809}`,
		`{"Bytes": "*"}`, `{"Bytes": {}}`, `{"Octets": [1, 2]}`, `{"Octets": [1, 2, 3, 4]}`, `{"Octets": null}`,
		`{"Words": [1, 2}`, `{"Words": [1 2]}`, `{"Words": [,]}`, `{"Words": {}}`, `{"List": [null, 1]}`, `{"Pointer": []}`,
		`{"Raw": null}`, `{"Raw": nul}`, `{"Raw": [1,}`, `{"Raw": {"a" 1}}`, `{"Raw": 1.5}`, `{"Time": "yesterday"}`, `{"Upper": 1}`,
		`{"Map": {"a": 1}}`, `{"Any": 1}`, `{"Float": 1}`, `{"Gone": 01}`, `{"Gone": [1}`,
		`{"Gone": ` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`,
		strings.Repeat(`{"Pointer": {"More": [`, 40),
	} {
		var got, want Everything
		if quick([]byte(text), reflect.ValueOf(&got).Elem()) {
			t.Errorf("not left to encoding/json: %s", text)
		}
		err, wantErr := Unmarshal([]byte(text), &got), json.Unmarshal([]byte(text), &want)
		if !reflect.DeepEqual(err, wantErr) || !reflect.DeepEqual(got, want) {
			t.Errorf("%s\nis %+v, %v\nwant %+v, %v", text, got, err, want, wantErr)
		}
	}
}

// TestTypes has types whose rules are left to encoding/json.
func TestTypes(t *testing.T) {
	type numbers struct{ N json.Number }
	type quoted struct {
		N int `json:",string"`
	}
	type pointed struct{ *Embedded }
	type one struct{ Name int }
	type other struct{ Name int }
	type both struct {
		one
		other
	}
	type strange struct {
		N int `json:"a-b"`
	}
	type timed struct{ T struct{ time.Time } }
	for _, tt := range []struct {
		into any
		text string
	}{
		{new(numbers), `{"N": 1}`}, {new(quoted), `{"N": "1"}`}, {new(pointed), `{"First": 1}`}, {new(both), `{"Name": 1}`},
		{new(strange), `{"a-b": 1}`}, {new(timed), `{"T": "2026-01-02T03:04:05Z"}`}, {new(map[string]int), `{"a": 1}`},
		{new(float64), `1`}, {new([1]any), `[{}]`},
	} {
		if quick([]byte(tt.text), reflect.ValueOf(tt.into).Elem()) {
			t.Errorf("%T is not left to encoding/json", tt.into)
		}
		want := reflect.New(reflect.TypeOf(tt.into).Elem())
		err, wantErr := Unmarshal([]byte(tt.text), tt.into), json.Unmarshal([]byte(tt.text), want.Interface())
		if !reflect.DeepEqual(err, wantErr) || !reflect.DeepEqual(tt.into, want.Interface()) {
			t.Errorf("%T is %+v, %v, want %+v, %v", tt.into, tt.into, err, want, wantErr)
		}
	}
	for _, into := range []any{nil, Everything{}, (*Everything)(nil)} {
		if err, want := Unmarshal([]byte(`{}`), into), json.Unmarshal([]byte(`{}`), into); err == nil || !reflect.DeepEqual(err, want) {
			t.Errorf("%T: %v, want %v", into, err, want)
		}
	}
}

// TestShares changes the text after it was read.
func TestShares(t *testing.T) {
	text := []byte(`{"Text": "text", "Raw": {"a": 1}, "Upper": "UP", "Bytes": "AAAA"}`)
	var got, want Everything
	if err := json.Unmarshal(text, &want); err != nil {
		t.Fatal(err)
	}
	if err := Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	clear(text)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// FuzzUnmarshal compares with encoding/json.
func FuzzUnmarshal(f *testing.F) {
	for _, v := range []any{full(), Everything{}} {
		text, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(`{"Gone": [{"a": [[], {}, -1, "x"]}], "Int64": -0, "Words": [], "List": [null, {}], "Raw": [{}, null]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var got, want Everything
		taken := quick(text, reflect.ValueOf(&got).Elem())
		err := json.Unmarshal(text, &want)
		if taken && (err != nil || !reflect.DeepEqual(got, want)) {
			t.Errorf("%q\nis %+v\nwant %+v, %v", text, got, want, err)
		}
	})
}
