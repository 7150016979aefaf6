# A web server of one page that keeps its connections, for many at once. Arguments: port, page.
use IO::Socket::INET;
use IO::Select;
use Socket qw(IPPROTO_TCP TCP_NODELAY);
my ($port, $page) = @ARGV;
$SIG{PIPE} = "IGNORE";
my $listening = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => $port, Listen => 256, ReuseAddr => 1) or die $!;
my $answer = "HTTP/1.1 200 OK\r\nContent-Length: " . length($page) . "\r\n\r\n$page";
my $all = IO::Select->new($listening);
my %read;
while (my @ready = $all->can_read) {
    for my $one (@ready) {
        if ($one == $listening) {
            my $client = $listening->accept or next;
            setsockopt($client, IPPROTO_TCP, TCP_NODELAY, 1);
            $all->add($client);
            next;
        }
        my $more = sysread($one, $read{$one}, 65536, length($read{$one} // ""));
        while ($more && $read{$one} =~ s/^.*?\r\n\r\n//s) {
            $more = syswrite($one, $answer);
        }
        next if $more;
        delete $read{$one};
        $all->remove($one);
        close $one;
    }
}
