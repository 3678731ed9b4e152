package main

import (
	"reflect"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio/blk"
	"github.com/godwit-vmm/godwit/devices/virtio/limit"
)

func TestParseDisk(t *testing.T) {
	for _, test := range []struct {
		text string
		want blk.Config
		err  string // in the error
	}{
		{"a.img", blk.Config{Path: "a.img"}, ""},
		{"a.img,ro,direct", blk.Config{Path: "a.img", ReadOnly: true, Direct: true}, ""},
		{"/dev/sdb,serial=x1,queues=4", blk.Config{Path: "/dev/sdb", Serial: "x1", Queues: 4}, ""},
		{"a.img,bandwidth=10M,iops=500", blk.Config{Path: "a.img", Limit: limit.Config{
			Bandwidth: limit.Rate{PerSecond: 10 << 20}, Operations: limit.Rate{PerSecond: 500}}}, ""},
		{"", blk.Config{}, "names no file"},
		{",ro", blk.Config{}, "names no file"},
		{"a.img,rw", blk.Config{}, `unknown disk option "rw"`},
		{"a.img,ro=1", blk.Config{}, "unknown disk option"},
		{"a.img,queues=0", blk.Config{}, "from 1"},
		{"a.img,iops=-1", blk.Config{}, "requests a second"},
		{"a.img,bandwidth=fast", blk.Config{}, "not a size"},
	} {
		got, err := parseDisk(test.text)
		switch {
		case test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)):
			t.Errorf("%q: error %v, want %q", test.text, err, test.err)
		case test.err == "" && (err != nil || !reflect.DeepEqual(got, test.want)):
			t.Errorf("%q: got %+v, %v", test.text, got, err)
		}
	}
}
