package blk

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
)

// The disk of the model: what several clients own lies close together in the
// first part, where they share clusters, and in large pieces in the second, where
// their requests cover many clusters, with borders within clusters.
const (
	modelClients  = 4
	modelBlock    = 8 // sectors
	modelShared   = 2048
	modelPiece    = 1543
	modelSectors  = modelShared + modelClients*modelPiece
	modelRequests = 300
)

// ownRange is a random range that belongs to a client.
func ownRange(rng *rand.Rand, client int) (sector, n uint64) {
	if rng.IntN(2) == 0 {
		block := rng.Uint64N(modelShared/modelBlock/modelClients)*modelClients + uint64(client)
		skip := rng.Uint64N(modelBlock)
		return block*modelBlock + skip, 1 + rng.Uint64N(modelBlock-skip)
	}
	skip := rng.Uint64N(modelPiece)
	return modelShared + uint64(client)*modelPiece + skip, 1 + rng.Uint64N(min(modelPiece-skip, clientData/SectorSize))
}

// playModel makes random requests. contents is what the disk must have; each
// client changes what it owns.
func playModel(c *client, device *Device, client int, rng *rand.Rand, contents []byte) {
	for i := range modelRequests {
		sector, n := ownRange(rng, client)
		own := contents[sector*SectorSize : (sector+n)*SectorSize]
		switch rng.IntN(10) {
		case 0, 1, 2, 3:
			data := pattern(len(own), rng.Uint64())
			copy(own, data)
			c.do(typeOut, sector, data)
		case 4:
			clear(own)
			c.do(typeWriteZeroes, 0, segment(sector, uint32(n), rng.Uint32N(2)))
		case 5:
			c.do(typeDiscard, 0, segment(sector, uint32(n), 0))
			adoptDiscard(c, sector, own)
		case 6:
			c.do(typeFlush, 0, nil)
		case 7:
			if err := device.Sync(); err != nil {
				c.t.Error(err)
			}
		default:
			got := make([]byte, len(own))
			if c.do(typeIn, sector, got); !bytes.Equal(got, own) {
				c.t.Errorf("client %d, request %d: wrong data at sector %d, %d sectors", client, i, sector, n)
				return
			}
		}
	}
}

// adoptDiscard reads what was discarded: each sector is as it was, or zero.
func adoptDiscard(c *client, sector uint64, own []byte) {
	got := make([]byte, len(own))
	c.do(typeIn, sector, got)
	for at := 0; at < len(own); at += SectorSize {
		now := got[at : at+SectorSize]
		if !bytes.Equal(now, own[at:at+SectorSize]) && !bytes.Equal(now, zeros[:SectorSize]) {
			c.t.Errorf("sector %d is neither as it was nor zero after a discard", sector+uint64(at/SectorSize))
		}
	}
	copy(own, got)
}

// TestOverlayModel compares an overlay that several queues use at once with what
// it must be, over several sessions.
func TestOverlayModel(t *testing.T) {
	eachEngine(t, func(t *testing.T, e engine) {
		for _, c := range []Config{{}, {noInline: true}, {Direct: true}} {
			t.Run(fmt.Sprintf("direct=%v,noInline=%v", c.Direct, c.noInline), func(t *testing.T) {
				base, contents := makeBase(t, modelSectors*SectorSize)
				c.Path, c.Overlay, c.engine, c.Queues = base, overlayFor(t), e, modelClients
				for round := range uint64(3) {
					modelSession(t, c, round, contents)
				}
				d := session(t, c)
				d.expect(0, contents)
				d.end()
			})
		}
	})
}

func modelSession(t *testing.T, c Config, seed uint64, contents []byte) {
	device, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	d := &disk{virtiotest.Start(t, device, virtiotest.Options{}), t, device}
	var clients []*client
	for i := range modelClients {
		clients = append(clients, newClient(d, i))
	}
	var all sync.WaitGroup
	for i, c := range clients {
		all.Go(func() { playModel(c, device, i, rand.New(rand.NewPCG(seed, uint64(i))), contents) })
	}
	all.Wait()
	d.Stop()
	if seed%2 == 1 {
		kill(t, device)
	} else if err := device.Close(); err != nil {
		t.Error(err)
	}
}

// TestOverlayPowerLoss takes copies of an overlay before and after writes and
// flushes, and makes of them what a host may find that went down in between: of
// each sector that was not synced, the state before or after. Each sector of the
// disk must be as it was at the last flush or as it was written since.
func TestOverlayPowerLoss(t *testing.T) {
	base, contents := makeBase(t, modelSectors*SectorSize)
	c := Config{Path: base, Overlay: overlayFor(t)}
	l := layoutFor(modelSectors * SectorSize)
	rng := rand.New(rand.NewPCG(5, 6))
	d := session(t, c)
	change := func() {
		for range 1 + rng.IntN(8) {
			sector, n := ownRange(rng, rng.IntN(modelClients))
			own := contents[sector*SectorSize : (sector+n)*SectorSize]
			if rng.IntN(4) == 0 {
				clear(own)
				d.mustSend(typeWriteZeroes, 0, segment(sector, uint32(n), rng.Uint32N(2)))
				continue
			}
			copy(own, pattern(len(own), rng.Uint64()))
			d.mustSend(typeOut, sector, own)
		}
	}
	flush := func() (disk, file []byte) {
		d.mustSend(typeFlush, 0)
		return bytes.Clone(contents), readFile(t, c.Overlay)
	}
	before, atFlush := flush()
	for range 25 {
		change()
		after, written := bytes.Clone(contents), readFile(t, c.Overlay)
		_, flushed := flush()

		// While the contents are synced.
		lost := mix(rng, atFlush, written)
		afterPowerLoss(t, c, lost, before, after)
		// While the bitmap is.
		lost = bytes.Clone(written)
		bitmaps := mix(rng, atFlush[:l.dataAt], flushed[:l.dataAt])
		copy(lost[l.durableAt:l.durableAt+l.bitmap], bitmaps[l.durableAt:])
		afterPowerLoss(t, c, lost, before, after)
		// After the flush, with no more than what is durable.
		lost = bytes.Clone(flushed)
		clear(lost[l.writtenAt : l.writtenAt+l.bitmap])
		afterPowerLoss(t, c, lost, after, after)
		before, atFlush = after, flushed
	}
	d.end()
}

// mix takes each sector of one or the other.
func mix(rng *rand.Rand, a, b []byte) []byte {
	p := bytes.Clone(a)
	for at := 0; at < len(p); at += SectorSize {
		if rng.IntN(2) == 0 {
			copy(p[at:min(at+SectorSize, len(p))], b[at:])
		}
	}
	return p
}

// afterPowerLoss opens an overlay that a crash of the host has left.
func afterPowerLoss(t *testing.T, c Config, file, before, after []byte) {
	t.Helper()
	c.Overlay = overlayFor(t)
	writeFile(t, c.Overlay, file)
	anotherBoot(t, c.Overlay)
	d := session(t, c)
	defer d.end()
	got, s := d.read(0, len(before))
	if s != statusOK {
		t.Fatalf("read: status %d", s)
	}
	for at := 0; at < len(got); at += SectorSize {
		now := got[at : at+SectorSize]
		if !bytes.Equal(now, before[at:at+SectorSize]) && !bytes.Equal(now, after[at:at+SectorSize]) {
			t.Fatalf("sector %d is neither as flushed nor as written since", at/SectorSize)
		}
	}
}
