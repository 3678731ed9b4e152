package statejson_test

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio/balloon"
	"github.com/godwit-vmm/godwit/devices/virtio/blk"
	"github.com/godwit-vmm/godwit/devices/virtio/console"
	"github.com/godwit-vmm/godwit/devices/virtio/net"
	"github.com/godwit-vmm/godwit/devices/virtio/rng"
	"github.com/godwit-vmm/godwit/devices/virtio/vsock"
	"github.com/godwit-vmm/godwit/internal/vmm"
	"github.com/godwit-vmm/godwit/machine"
	"github.com/godwit-vmm/godwit/migrate/snapshot"
	"github.com/godwit-vmm/godwit/migrate/statejson"
)

// TestStates has everything that a restore reads, with a value in each field: it is
// quick to read, and read as it was written.
func TestStates(t *testing.T) {
	for _, v := range []any{
		new(machine.State), new(vmm.Config), new(snapshot.Manifest),
		new(balloon.State), new(blk.State), new(console.State), new(net.State), new(rng.State), new(vsock.State),
	} {
		fill(reflect.ValueOf(v).Elem())
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		got, want := reflect.New(reflect.TypeOf(v).Elem()).Interface(), reflect.New(reflect.TypeOf(v).Elem()).Interface()
		if !statejson.Quick(text, got) {
			t.Errorf("%T is left to encoding/json: a restore takes longer", v)
		}
		if err := json.Unmarshal(text, want); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%T: %v\nis %+v\nwant %+v", v, err, got, want)
		}
	}
}

// fill gives all that can be set a value.
func fill(v reflect.Value) {
	switch {
	case v.Type() == reflect.TypeFor[json.RawMessage]():
		v.SetBytes([]byte(`{"a":[1]}`))
	case !v.CanSet():
	case v.CanInt():
		v.SetInt(-1)
	case v.CanUint():
		v.SetUint(7)
	case v.Kind() == reflect.Bool:
		v.SetBool(true)
	case v.Kind() == reflect.String:
		v.SetString("text")
	case v.Kind() == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case v.Kind() == reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(1))
		fill(v.Index(0))
	case v.Kind() == reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i))
		}
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).Tag.Get("json") != "-" {
				fill(v.Field(i))
			}
		}
	}
}
