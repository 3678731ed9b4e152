package net

import (
	"bytes"
	"testing"

	"github.com/godwit-vmm/godwit/devices/virtio/virtiotest"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// TestShowPlace: what the network gets is a reverse ARP request for the guest's address.
func TestShowPlace(t *testing.T) {
	g := newGuest(t, Config{}, virtiotest.Options{})
	if err := g.device.ShowPlace(); err != nil {
		t.Fatal(err)
	}
	_, frame := g.wire.get()
	mac := g.device.config.MAC
	if len(frame) != 60 || !bytes.Equal(frame[:6], bytes.Repeat([]byte{0xff}, 6)) || !bytes.Equal(frame[6:12], mac[:]) || !bytes.Equal(frame[12:14], []byte{0x80, 0x35}) {
		t.Fatalf("frame % x", frame)
	}
	var arp layers.ARP
	if err := arp.DecodeFromBytes(frame[14:], gopacket.NilDecodeFeedback); err != nil {
		t.Fatal(err)
	}
	if arp.Operation != 3 || !bytes.Equal(arp.SourceHwAddress, mac[:]) || !bytes.Equal(arp.DstHwAddress, mac[:]) {
		t.Errorf("request %+v", arp)
	}
}
