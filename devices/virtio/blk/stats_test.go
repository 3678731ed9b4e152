package blk

import "testing"

func TestStats(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		for _, noInline := range []bool{false, true} {
			path, _ := makeImage(t, 1<<20)
			d := newDisk(t, Config{Path: path, engine: e, noInline: noInline})
			d.read(0, 4096)
			d.read(8, 512)
			d.mustSend(typeOut, 0, make([]byte, 1024))
			d.mustSend(typeFlush, 0)
			if _, s := d.read(1<<40, 512); s != statusIOError {
				t.Errorf("behind the end: status %d", s)
			}
			want := Stats{
				Read: Counts{Requests: 2, Bytes: 4608}, Write: Counts{Requests: 1, Bytes: 1024},
				Flushes: Counts{Requests: 1},
			}
			if got := d.device.Stats(); got != want {
				t.Errorf("%+v, want %+v", got, want)
			}
		}
	})
}
