package micro

import (
	"errors"
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio"
)

// brokenDisk is a disk of 1 MiB that treats each request as serve says.
type brokenDisk struct {
	serve func(d virtio.Driver, c *virtio.Chain)
	loop  *virtio.Loop
}

func (b *brokenDisk) Type() virtio.DeviceType    { return virtio.TypeBlock }
func (b *brokenDisk) Features() uint64           { return 0 }
func (b *brokenDisk) QueueSizes() []uint16       { return []uint16{256} }
func (b *brokenDisk) WriteConfig(uint64, []byte) {}
func (b *brokenDisk) Reset()                     {}

func (b *brokenDisk) ReadConfig(offset uint64, p []byte) {
	virtio.ReadConfig([]byte{0, 8}, offset, p)
}

func (b *brokenDisk) Start(d virtio.Driver) error {
	var err error
	if b.loop, err = virtio.NewLoop(); err != nil {
		return err
	}
	q := d.Queues[0]
	err = b.loop.AddQueue(q, func() {
		var c virtio.Chain
		for {
			ok, err := q.Pop(&c)
			if err != nil {
				d.Fail(err)
			}
			if !ok {
				return
			}
			b.serve(d, &c)
		}
	})
	if err != nil {
		return err
	}
	q.Kick()
	b.loop.Start()
	return nil
}

func (b *brokenDisk) Stop() {
	if b.loop != nil {
		b.loop.Stop()
	}
}

// TestBlockMistrusts lets devices do what they must not.
func TestBlockMistrusts(t *testing.T) {
	const size = 4096
	good := func(c *virtio.Chain) {
		data := make([]byte, size+1) // and the status
		Pattern(0, 0, data[:size])
		c.CopyIn(0, data)
	}
	for _, test := range []struct {
		name   string
		serve  func(d virtio.Driver, c *virtio.Chain)
		status Status
		detail uint64
		errors uint64
	}{
		{"a good one", func(d virtio.Driver, c *virtio.Chain) {
			good(c)
			d.Queues[0].Push(c.Head, size+1)
		}, StatusDone, 0, 0},
		{"asks for a reset", func(d virtio.Driver, c *virtio.Chain) { d.Fail(errors.New("broken")) }, StatusNeedsReset, 0x4f, 0},
		{"a chain out of range", func(d virtio.Driver, c *virtio.Chain) { d.Queues[0].Push(7, size+1) }, StatusBadUsed, 7, 0},
		{"a chain not in flight", func(d virtio.Driver, c *virtio.Chain) { d.Queues[0].Push(c.Head^3, size+1) }, StatusBadUsed, 3, 0},
		{"twice the same", func(d virtio.Driver, c *virtio.Chain) {
			good(c)
			d.Queues[0].Push(c.Head, size+1)
			d.Queues[0].Push(c.Head, size+1)
		}, StatusBadUsed, 0, 0},
		{"wrong length", func(d virtio.Driver, c *virtio.Chain) {
			good(c)
			d.Queues[0].Push(c.Head, size)
		}, StatusBadUsed, size, 0},
		{"no status", func(d virtio.Driver, c *virtio.Chain) { d.Queues[0].Push(c.Head, size+1) }, StatusDone, 0xff, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			disk := &brokenDisk{serve: test.serve}
			t.Cleanup(func() {
				if disk.loop != nil {
					disk.loop.Close()
				}
			})
			b := Block{Driver: Driver{Stop: AnyStop()}, Size: size, Span: size, Depth: 4, Requests: 2, Verify: true}
			g := newVirtioGuest(t, program(t)(b.ELF()), disk)
			g.hostile = true
			r := g.run()
			if r.Status != test.status || r.Detail != test.detail || r.Errors != test.errors || r.Mismatches > 0 {
				t.Errorf("status %d, detail %#x, %d errors, %d mismatches; want %d, %#x, %d", r.Status, r.Detail, r.Errors, r.Mismatches, test.status, test.detail, test.errors)
			}
		})
	}
}
